"""The search on a compiler whose memory and time are known."""

import json

import pytest

from jmm.cli import main
from jmm.errors import UserError
from jmm.planning import compiler
from jmm.planning.chips import GIB, slice_of
from jmm.planning.search import meshes, search
from tests.planning.test_plan import FACTS, SMALL, without

MEMORY = {"none": 20, "dots": 12, "full": 6}
SLOWER = {"none": 1.0, "dots": 1.1, "full": 1.3}


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    return tmp_path / "small.py"


def fields_of(overrides):
    return dict(zip(overrides[::2], overrides[1::2], strict=True))


def pretended(file, overrides, topology, slices):
    """Less memory and more time the more is computed again, or cut; four ways of heads are refused."""
    fields = fields_of(overrides)
    remat = fields["--model.image.encoder.remat"]
    fsdp, tensor, parts = (int(fields[f"--{name}"]) for name in ("mesh.fsdp", "mesh.tensor", "optimizer.accumulate"))
    if tensor == 4:
        raise UserError("2 heads do not divide over 4")
    needed = int((MEMORY[remat] / parts + 8 / fsdp) * GIB)
    if needed > 16 * GIB:
        return without("work", "collectives") | {"fits": False, "needed": needed, "available": 16 * GIB}
    work = [[1, 197e12 * 0.1 * SLOWER[remat] * (1 + 0.01 * (fsdp + tensor + parts)), 0, False]]
    state = {"parameters": needed}
    memory = {"arguments": needed, "temporaries": 0, "code": 0, "state_bytes": state}
    return FACTS | memory | {"topology": topology, "slices": slices, "work": work, "collectives": []}


def test_of_each_mesh_the_first_that_fits_is_kept_and_the_fastest_comes_first(small):
    said = []
    found = search(small, ["--batch_size", "64"], "v5e:2x2", 1, 100, pretended, said.append)
    best, _ = found[0]
    fields = fields_of(best)
    # 12 GiB and a half of 8 fit; not cut they do not, and computing all again costs more.
    assert fields["--mesh.fsdp"] == "2" and fields["--mesh.tensor"] == "1"
    assert fields["--model.image.encoder.remat"] == "dots" and fields["--optimizer.accumulate"] == "1"
    times = [plan.step_seconds for _, plan in found]
    assert times == sorted(times) and len(found) == 5 and all(plan.fits for _, plan in found)
    assert any("does not fit" in line for line in said) and any("2 heads do not divide" in line for line in said)
    assert len({each for each, _ in found}) == len(found)


def test_no_more_is_compiled_than_asked(small):
    said = []
    search(small, [], "v5e:2x2", 1, 4, pretended, said.append)
    assert len(said) == 4
    with pytest.raises(
        UserError, match=r"none of the 2 arrangements that were tried fits v5e:2x2: the last needs 20\.00"
    ):
        search(small, [], "v5e:2x2", 1, 2, pretended, said.append)


def test_meshes_hold_the_state_in_half_of_their_memory():
    shared = [fields_of(each) for each in meshes(slice_of("v5e:2x2", 2), 20 * GIB)]
    assert shared and all(int(each["--mesh.data"]) % 2 == 0 for each in shared)
    cuts = [fields_of(each) for each in meshes(slice_of("v5e:2x4"), 20 * GIB)]
    assert all(int(cut["--mesh.fsdp"]) * int(cut["--mesh.tensor"]) >= 4 for cut in cuts)
    assert all(int(cut["--mesh.data"]) * int(cut["--mesh.fsdp"]) * int(cut["--mesh.tensor"]) == 8 for cut in cuts)
    assert cuts[0] == {"--mesh.data": "2", "--mesh.fsdp": "4", "--mesh.tensor": "1"}
    assert not list(meshes(slice_of("v5e:2x2"), 1000 * GIB))


def test_the_command_shows_the_best(small, capsys, monkeypatch):
    monkeypatch.setattr(compiler, "compiled", pretended)
    asked = ["plan", str(small), "--topology", "v5e:2x2"]
    assert main([*asked, "--search", "40", "--json"]) == 0
    said = capsys.readouterr()
    best = json.loads(said.out)["best"]
    assert len(best) == 3 and best[0]["step_seconds"] <= best[1]["step_seconds"] and "--mesh.fsdp" in best[0]["fields"]
    assert main([*asked, "--search", "0"]) == 2
    assert "at least 1, not 0" in capsys.readouterr().err
