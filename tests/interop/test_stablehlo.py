"""StableHLO programs, run in a fresh process by JAX alone."""

import json

import jax
import pytest
from jax import export

from jmm.interop.stablehlo import export_stablehlo
from tests.interop.exports import CONFIGS, assert_runs_elsewhere, model_of

RUN = """
import functools, runpy
@functools.cache
def load(folder, name):
    return runpy.run_path(str(folder / "load.py"))["load"](name)
def run(folder, name, batch):
    return load(folder, name)(**batch)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The models and the folders that they were exported into."""
    folders = tmp_path_factory.mktemp("stablehlo")
    models = {name: model_of(config) for name, config in CONFIGS.items()}
    for name, model in models.items():
        (folders / name).mkdir()
        export_stablehlo(model, folders / name)
    return models, folders


def test_systems_run_without_jmm(exported):
    assert_runs_elsewhere(RUN, {"jmm", "flax", "data_pipelines"}, *exported)


def test_a_program_is_for_three_platforms_and_any_length(exported):
    _, folders = exported
    program = export.deserialize((folders / "llama" / "text.jax_export").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    weights, batch = jax.tree.unflatten(program.in_tree, program.in_avals)[0]
    assert [str(size) for size in batch["text"].shape] == ["batch", "text_length"]
    assert weights.keys() == set(described(folders / "llama")["programs"]["text"]["weights"])


def test_the_description_says_what_goes_in_and_out(exported):
    _, folders = exported
    description = described(folders / "clip")
    assert description["system"] == "CLIP"
    assert description["preprocess"]["mean"] == [0.5]
    image, text = description["programs"]["image"], description["programs"]["text"]
    assert image["inputs"] == {"image": {"shape": ["batch", 16, 16, 3], "dtype": "float32"}}
    assert image["outputs"]["image_embedding"] == {"shape": ["batch", 20], "dtype": "float32"}
    assert text["inputs"]["text_mask"] == {"shape": ["batch", "text_length"], "dtype": "bool"}
    assert text["longest"] == {"text_length": 9}
    assert not any(name.startswith("params/text") for name in image["weights"])
    assert (folders / "clip" / "tokenizer.json").exists()


def described(folder):
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))
