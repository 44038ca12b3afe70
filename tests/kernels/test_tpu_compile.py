"""The real TPU compiler takes the kernels: ahead of time, on any machine, in a process of its own."""

import sys

import pytest

from tests.benchmarks.tpu_compiler import CASES, TOPOLOGIES, ask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the TPU compiler exists for Linux alone")


# Between them the widest heads, both types, every formula and grouped heads.
SEVERAL = ["every formula at once, grouped, 256 wide", "segments, grouped, one bias, 72 wide, float32"]


@pytest.mark.parametrize(
    ("topology", "length", "cases"), [("v5e", 197, list(CASES)), ("v5p", 1024, SEVERAL), ("v6e", 1024, SEVERAL)]
)
def test_features_compile_forward_and_backward(topology, length, cases):
    # `python -m tests.benchmarks.attention --only compile` has all cases and all lengths for all chips.
    assert topology in TOPOLOGIES
    answer = ask("compile", topologies=[topology], lengths=[length], cases=cases)
    assert "error" not in answer, answer
    rows = answer["rows"]
    assert [row for row in rows if "error" in row] == []
    assert len(rows) == len(cases)


@pytest.mark.parametrize(("mask", "row_major"), [(None, False), ("segments", False), ("causal", True)])
def test_memory_beyond_inputs_and_outputs(mask, row_major):
    given = {"mask": mask, "row_major": row_major}
    ours, dense = (ask("memory", contestant=name, **given)["bytes"] for name in ("ours", "dense"))
    assert ours <= dense / 20


def test_the_contrastive_loss_of_a_slice_holds_no_matrix():
    batch = 131_072
    # A chip's share of the [B, B] matrix would be 268 MB.
    assert ask("contrastive_loss", batch=batch)["bytes"] < batch * batch * 4 / 256 / 20


def test_the_ring_sends_while_it_computes():
    answer = ask("ring")
    assert answer["transfers"] == answer["covered"] >= 6, answer
    assert answer["gathers"] == 0
