"""The rows of attention that the TPU compiler answers, on any machine: it needs the `tpu` extra but no TPU."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tests.benchmarks.report import Measurement, Row
from tests.benchmarks.tpu_compiler import LENGTHS, TOPOLOGIES, ask

MIB = 2**20


def compile_table() -> Sequence[Row]:
    """Every feature, forward and backward, for every chip and length; temporary memory a chip."""
    rows = []
    for topology in TOPOLOGIES:
        answer = ask("compile", topologies=[topology], lengths=LENGTHS)
        if "error" in answer:
            rows.append(Row(f"{topology}: {answer['error']}", float("nan"), "MiB", "compiles", False))
        for case in answer.get("rows", []):
            what = f"{case['topology']}, length {case['length']:,}, {case['case']}"
            if "error" in case:
                rows.append(Row(f"{what}: {case['error']}", float("nan"), "MiB", "compiles", False))
            else:
                rows.append(Row(f"{what}: temporary memory a chip", case["temporary_mib"], "MiB", "compiles", True))
    return rows


def memory() -> Sequence[Row]:
    """Beyond inputs and outputs, forward and backward, B 8, 12 heads, length 4,096, D 64, bfloat16, for v5e."""
    rows = []
    for mask, row_major in ((None, False), ("causal", False), ("segments", False), ("causal", True)):
        names = ("ours", "dense", "flash", "splash")
        found = {name: ask("memory", contestant=name, mask=mask, row_major=row_major) for name in names}
        ours = found["ours"]["bytes"]
        name = {None: "full", "segments": "causal and segments"}.get(mask, mask)
        what = f"temporary memory on v5e, {name}{', all arrays row-major' if row_major else ''}"
        rows.append(Row(what, ours / MIB, "MiB", "printed", True))
        for other, limit in (("dense", 1 / 20), ("flash", 1), ("splash", 1)):
            theirs = found[other]["bytes"]
            called = "jax.nn.dot_product_attention" if other == "dense" else f"JAX's {other} kernel"
            at_most = f"≤ {limit * theirs / MIB:,.0f} MiB ({limit:g} of {called})"
            beside = f"{what}, over {called}'s {theirs / MIB:,.0f} MiB"
            rows.append(Row(beside, ours / theirs, "", at_most, ours <= limit * theirs))
    return rows


def cycles() -> Sequence[Row]:
    """Static estimate of the forward kernel, D 128, two heads, length 2,048, blocks of 512, against JAX's flash kernel.

    The flash kernel knows no prefix: it is held against the flash kernel that looks at everything. v5e cannot be
    asked: its profile aborts on the prefetched list.
    """
    rows = []
    for topology in ("v5p", "v6e"):
        for mask in ("causal", "prefix"):
            shape = {"length": 2048, "blocks": (512, 512), "width": 128}
            found = [
                ask("cycles", profile=True, contestant=name, topology=topology, mask=mask, **shape)
                for name in ("ours", "flash")
            ]
            if errors := [answer["error"] for answer in found if "error" in answer]:
                rows.append(Row(f"cycles on {topology}, {mask}: {errors[0]}", float("nan"), "", "≤ 1.0", False))
                continue
            ours, flash = (answer["cycles"] for answer in found)
            what = f"estimated cycles on {topology}, {mask}: {ours:,} of the flash kernel's {flash:,}"
            rows.append(Row(what, ours / flash, "", "≤ 1.0", ours <= flash))
    return rows


def ring() -> Sequence[Row]:
    """Transfers of a causal ring over four v5e chips that run while a kernel computes."""
    answer = ask("ring")
    if "error" in answer:
        return [Row(f"ring: {answer['error']}", float("nan"), "", "1.00", False)]
    share = answer["covered"] / answer["transfers"]
    return [Row(f"ring of 4: of {answer['transfers']} transfers overlapped", share, "", "1.00", share == 1)]


def block_map() -> Sequence[Row]:
    """Blocks computed over blocks that hold a visible pair, blocks of 64."""
    from tests.kernels.test_blocks import PATTERNS, mapped, of_the_field, pair_blocks

    rows = []
    for name in PATTERNS:
        mask, q_length, k_length = of_the_field(name)
        some = np.asarray(jnp.sum(mapped(mask, q_length, k_length, 64, 64).some))
        needed = pair_blocks(np.asarray(mask.dense(q_length, k_length)), 64, 64)[0].sum()
        rows.append(
            Row(f"blocks computed over blocks needed, {name}", float(some / needed), "", "1.00", bool(some == needed))
        )
    return rows


MEASUREMENTS: dict[str, Measurement] = {
    "compile": compile_table,
    "memory": memory,
    "cycles": cycles,
    "ring": ring,
    "block_map": block_map,
}
