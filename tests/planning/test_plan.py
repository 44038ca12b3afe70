"""Plans: the roofline by hand, what does not fit, and the command on the real compiler."""

import json
import sys

import pytest
from PIL import Image

from jmm.cli import main
from jmm.errors import UserError
from jmm.planning import compiler
from jmm.planning.chips import CHIPS, GIB, slice_of
from jmm.planning.plan import Plan
from tests.training.test_packed import experiment as packed_experiment

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the TPU compiler exists for Linux alone")

FACTS = {
    "experiment": "counted",
    "topology": "v5e:4x4",
    "slices": 1,
    "evaluation": None,
    "mesh": {"data": 4, "fsdp": 4, "tensor": 1, "sequence": 1},
    "batch_size": 256,
    "steps": 3600,
    "precision": "bfloat16",
    "parameters": 1000,
    "model_flops": 16 * 197e12 * 0.5,
    "state_bytes": {"parameters": 1 * GIB, "optimizer": 2 * GIB},
    "fits": True,
    "arguments": 4 * GIB,
    "temporaries": 5 * GIB,
    "results": 0,
    "code": GIB // 2,
    # times, FLOPs, bytes, whether beside others
    "work": [
        [10, 197e12 * 0.05, 819e9 * 0.01, False],  # 0.5 s of products
        [5, 197e12 * 0.01, 819e9 * 0.04, False],  # 0.2 s of bytes
        [1, 0.0, 819e9 * 0.3, True],  # with the 0.3 s of the others, within the 0.7 s that those take
    ],
    # kind, axes, whether beside others, bytes
    "collectives": [
        ["all-gather", "fsdp", True, 100e9 * 0.6],
        ["all-reduce", "data+fsdp", False, 100e9 * 0.1],
    ],
    "seconds_to_compile": 1.0,
}


def without(*names):
    """The facts but for some."""
    return {name: FACTS[name] for name in FACTS if name not in names}


def test_the_roofline_by_hand():
    plan = Plan(FACTS)
    assert plan.seconds == pytest.approx({"compute": 0.5, "memory": 0.2, "interconnect": 0.1})
    assert plan.step_seconds == pytest.approx(0.8) and plan.limit == "compute"
    assert plan.utilisation == pytest.approx(0.5 / 0.8)
    assert plan.flops_executed == pytest.approx(16 * 197e12 * 0.55)
    assert plan.sent == pytest.approx({"all-gather over fsdp": 60e9, "all-reduce over data+fsdp": 10e9})
    assert plan.hours == pytest.approx(0.8) and plan.cost(2.0) == pytest.approx(0.8 * 16 * 2)
    assert plan.fits and plan.memory_needed == 9.5 * GIB and plan.memory["padding"] == GIB


def test_what_runs_beside_other_work_costs_what_is_longer():
    slow = [["all-gather", "fsdp", True, 100e9 * 0.9], ["all-reduce", "data", False, 100e9 * 0.1]]
    # 0.9 s beside 0.7 s of work and 0.1 s of another exchange.
    assert Plan(FACTS | {"collectives": slow}).seconds["interconnect"] == pytest.approx(0.2)
    copied = [*FACTS["work"][:2], [1, 0.0, 819e9 * 0.7, True]]
    assert Plan(FACTS | {"work": copied}).seconds["memory"] == pytest.approx(0.2 + (0.1 + 0.2 + 0.7 - 0.7))


def test_what_does_not_fit():
    # What the compiler took fits, though all kinds together, not there at once, would not.
    close = Plan(FACTS | {"temporaries": 13 * GIB})
    assert close.fits and close.memory_needed == 17.5 * GIB
    told = without("work", "collectives", "arguments", "temporaries")
    refused = Plan(told | {"fits": False, "needed": 108 * GIB, "available": 15 * GIB})
    assert not refused.fits and refused.memory_there == 15 * GIB
    assert "108.000 GiB of 15.00" in refused.as_text() and "step_seconds" not in refused.as_json()


def test_what_goes_between_slices_takes_the_network():
    between = Plan(FACTS | {"slices": 2, "collectives": [["all-reduce", "slices", True, 3.125e9 * 0.9]]})
    # 0.9 s beside 0.7 s of work.
    assert between.seconds["interconnect"] == pytest.approx(0.2)
    assert between.slice.chips == 32 and "2 × v5e:4x4, 32 chips" in between.as_text()
    with pytest.raises(UserError, match="at least 1, not 0"):
        slice_of("v5e:4x4", 0)


def test_the_evaluation_must_fit_too():
    rows = {"rows": 64, "fits": True, "arguments": 2 * GIB, "temporaries": GIB, "results": 0, "code": 0}
    work = {"work": [[1, 197e12 * 0.05, 0, False]], "collectives": [], "seconds_to_compile": 1.0}
    plan = Plan(FACTS | {"evaluation": rows | work})
    assert plan.works and plan.evaluation.step_seconds == pytest.approx(0.05)
    assert "64 examples, 3.00 GiB, 50.00 ms" in plan.as_text() and plan.as_json()["evaluation"]["rows"] == 64
    large = Plan(FACTS | {"evaluation": {"rows": 64, "fits": False, "needed": 20 * GIB, "available": 15 * GIB}})
    assert large.fits and not large.works
    assert "The evaluation does not fit: 5.00 GiB a chip are missing" in large.as_text()


def test_text_and_picture(tmp_path):
    text = Plan(FACTS).as_text(2.0)
    assert "step, at best" in text and "800.00 ms, most of it compute" in text and "25.60 at 2 a chip-hour" in text
    Plan(FACTS).draw(tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.size == (1350, 510)


def test_the_batch_of_packed_texts_tells_them_apart():
    shapes = compiler.batch_of(packed_experiment())
    assert shapes.keys() == {"text", "text_mask", "segment", "position", "task"}
    assert shapes["segment"] == shapes["position"] == shapes["text"]


def test_slices():
    assert slice_of("v5e:16x16").chips == slice_of("v5e:16x16").devices == 256
    ironwood = slice_of("v7x:4x4x4")
    assert (ironwood.devices, ironwood.topology) == (128, "tpu7x:4x4x4")
    assert {chip.generation for chip in CHIPS.values()} == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
    for wrong, why in {"v9:2x2": "for example, v4:8x16x16, v5e:16x16", "v5e:3x3": "those of v5e are v5e:2x2"}.items():
        with pytest.raises(UserError, match=why):
            slice_of(wrong)


SMALL = """
from data_pipelines.digits import NAMES, Digits
from jmm.evaluation.classification import Classification
from jmm.experiment import Experiment, MeshShape
from jmm.models import vit
from jmm.parts.transformer import TransformerConfig


def experiment():
    stack = TransformerConfig(width=128, depth=3, num_heads=2, mlp_dim=256)
    tower = vit.ImageTower(stack, image_size=(32, 32), patch_size=8, channels=1)
    model = vit.Config(tower, num_classes=len(NAMES))
    evaluations = (Classification(NAMES),)
    mesh = MeshShape(fsdp=4)
    return Experiment("small", model, Digits(), steps=10, batch_size=32, mesh=mesh, evaluations=evaluations)
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "small.py").write_text(SMALL)
    return str(tmp_path / "small.py")


@LINUX
def test_the_command(small, tmp_path, capsys):
    asked = ["plan", small, "--topology", "v5e:2x2", "--json"]
    assert main([*asked, "--to", str(tmp_path / "plan"), "--price", "1.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {"plan.json", "plan.png", "plan.txt"}
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1} and found["precision"] == "bfloat16"
    # Nothing is computed twice, and what each chip does is its quarter.
    assert found["flops_executed"] == pytest.approx(found["model_flops"], rel=0.03)
    assert 0 < found["utilisation"] < 1 and found["fits"] and found["cost"] > 0
    # Weights are gathered for use, and their gradients are summed.
    assert {kind.split()[0] for kind in found["sent"]} >= {"all-gather"}
    assert all(kind.endswith("over fsdp") for kind in found["sent"])
    assert found["evaluation"]["rows"] == 64 and found["evaluation"]["seconds"] < found["step_seconds"]
    # The same programs are not compiled again.
    for kept in (tmp_path / "cache" / "jmm" / "plans").iterdir():
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"code": 777}))
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["program"] == 777


@LINUX
def test_two_slices_share_the_batch(small, capsys):
    assert main(["plan", small, "--topology", "v5e:2x2", "--slices", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1} and found["chips"] == 8
    # The gradient of every parameter, of which fsdp leaves a chip a quarter, is summed with the other slice once: in
    # two bytes of the blocks, that compute so, and in four of the rest.
    between = sum(size for kind, size in found["sent"].items() if kind.endswith("over slices"))
    assert found["parameters"] / 2 < between < found["parameters"]
    apart = ["plan", small, "--topology", "v5e:2x2", "--slices", "2", "--mesh.data", "1", "--mesh.fsdp", "8"]
    assert main(apart) == 1
    assert "data 1 does not divide over 2 slices" in capsys.readouterr().err


@LINUX
def test_bad_input_gets_one_sentence(small, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        code = main(["plan", *arguments])
        said = capsys.readouterr()
        assert code in (1, 2) and not said.out and said.err.count("\n") == 1, said
        return said.err

    assert "there is no topology v5e:5x5" in refused(small, "--topology", "v5e:5x5")
    assert "above 0, not -1" in refused(small, "--topology", "v5e:2x2", "--price", "-1")
    assert "there is no experiment file" in refused(str(tmp_path / "none.py"), "--topology", "v5e:2x2")
    apart = ("--mesh.data", "-1", "--mesh.fsdp", "3")
    assert "needs a multiple of 3 devices, there are 4" in refused(small, "--topology", "v5e:2x2", *apart)
    assert "mesh.fsdb" in refused(small, "--topology", "v5e:2x2", "--mesh.fsdb", "3")

    def missing(name):
        raise compiler.PackageNotFoundError(name)

    monkeypatch.setattr(compiler, "version", missing)
    assert 'pip install -e ".[tpu]"' in refused(small, "--topology", "v5e:2x2")


def test_a_step_that_does_not_fit_ends_with_1(small, capsys, monkeypatch):
    told = {"fits": False, "needed": 20 * GIB, "available": 15 * GIB}
    facts = without("work", "collectives") | told
    monkeypatch.setattr(compiler, "compiled", lambda *asked: facts)
    assert main(["plan", small, "--topology", "v5e:4x4"]) == 1
    assert "It does not fit: 5.00 GiB a chip are missing" in capsys.readouterr().out
