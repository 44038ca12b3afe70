"""ONNX models, run in a fresh process by onnxruntime alone, and what is refused."""

import re

import onnx
import pytest

import jmm.interop.onnx
from jmm.errors import UserError
from jmm.interop import extras
from jmm.interop.onnx import export_onnx
from jmm.interop.onnx_twins import TWINS
from tests.interop.exports import CONFIGS, assert_runs_elsewhere, model_of

RUN = """
import onnxruntime
def run(folder, name, batch):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return dict(zip((each.name.removesuffix("_out") for each in session.get_outputs()), session.run(None, batch)))
"""


def test_systems_run_in_onnxruntime_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(jmm.interop.onnx, "SINGLE_FILE", 70_000)
    models = {name: model_of(CONFIGS[name]) for name in ("vit", "clip", "llama", "t5", "vqgan")}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        export_onnx(model, tmp_path / name)
    assert_runs_elsewhere(RUN, {"jmm", "flax", "jax", "torch", "data_pipelines"}, models, tmp_path)
    beside = {name: (tmp_path / name / "image.onnx.data").exists() for name in ("vit", "clip")}
    assert beside == {"vit": True, "clip": False}
    graph = onnx.load(tmp_path / "llama" / "text.onnx").graph
    sizes = [[each.dim_param for each in field.type.tensor_type.shape.dim] for field in graph.input]
    assert [field.name for field in graph.input] == ["text", "text_mask"]
    assert sizes == [["batch", "text_length"]] * 2


def test_a_model_without_a_twin_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^ONNX is written by way of PyTorch, and this model has no twin") as caught:
        export_onnx(model_of(CONFIGS["resnet"]), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_onnxruntime_computes_otherwise_is_refused(tmp_path, monkeypatch):
    def wrong(twin):
        run = TWINS["ViTForImageClassification"](twin)
        return lambda program, **batch: {
            name: each * (1.001 if name == "logits" else 1) for name, each in run(program, **batch).items()
        }

    monkeypatch.setattr(jmm.interop.onnx, "TWINS", TWINS | {"ViTForImageClassification": wrong})
    with pytest.raises(UserError, match=r"^image.onnx is not written: its logits is off by .* for a batch of 3$"):
        export_onnx(model_of(CONFIGS["vit"]), tmp_path)


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name.startswith("onnx") else name)
    says = "needs packages that are not installed here: pip install onnx onnxscript onnxruntime"
    with pytest.raises(UserError, match=re.escape(says)):
        export_onnx(model_of(CONFIGS["vit"]), tmp_path)
    assert not list(tmp_path.iterdir())
