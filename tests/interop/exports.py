"""Small systems with noise for weights, and exported ones run in a process of their own."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.preprocess import Arrays, Preprocess
from jmm.distributed.mesh import MeshShape, make_mesh
from jmm.interop.programs import Program, programs
from jmm.model import Model
from jmm.models import clip, decoder, encoder_decoder, vit, vqgan
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import inputs_of
from tests.arrays import assert_close

QUICK = TransformerConfig(24, 2, 3, 40, activation="quick_gelu", norm_eps=1e-5)
LLAMA = TransformerConfig(
    *(24, 2, 4, 40, 2),
    activation="silu",
    gated=True,
    norm="rms",
    use_bias=False,
    rotary_base=10_000.0,
)
T5 = encoder_decoder.t5(20, 1, 3, 30)

GRID = vqgan.GridConfig(8, (1, 2), 1, (1,), 6, 4)
CONFIGS: dict[str, Any] = {
    "vit": vit.Config(vit.ImageTower(TransformerConfig(30, 2, 3, 50), (16, 24), 8), 7),
    "clip": clip.Config(
        vit.ImageTower(QUICK, (16, 16), 8, patch_bias=False, pre_norm=True),
        clip.TextTower(QUICK, 50, 9, end_token=49),
        20,
    ),
    "resnet": clip.Config(
        clip.ResNetTower((1, 1, 1, 1), 4, 2, (32, 64)), clip.TextTower(QUICK, 50, 9), 20, objective="sigmoid"
    ),
    # So long that on its own attention would be done in blocks.
    "llama": decoder.Config(LLAMA, 50, 200, first_position=None, tied_head=False),
    "t5": replace(T5, vocab_size=50, context_length=16),
    "vqgan": vqgan.Config((16, 16), 3, GRID, 20, 5, vqgan.Learned(weighted="codebook"), critic=None),
}


def model_of(config: Any) -> Model:
    """A model in float32 on one device; what starts at one (scales, variances) is noise around one."""
    module = config.build(jnp.float32)
    spec = inputs_of(module, {n: jnp.zeros(each.shape, each.dtype) for n, each in config.batch_spec(1).items()})
    rng = np.random.default_rng(0)

    def noise(path: Any, leaf: Any) -> np.ndarray:
        return np.asarray((path[-1].key in ("scale", "var")) + 0.1 * rng.standard_normal(leaf.shape), np.float32)

    variables = jax.tree.map_with_path(noise, jax.eval_shape(lambda: module.init(jax.random.key(0), **spec)))
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    return Model(config, module, jax.device_put(variables), Preprocess(), mesh)


class Job(NamedTuple):
    """One batch of one program of one exported system."""

    system: str
    folder: Path
    program: Program
    batch: Arrays
    number: int

    def file(self, what: str) -> Path:
        """Where inputs or outputs lie."""
        return self.folder.parent / f"{self.system}-{self.number}-{what}.npz"


def jobs(exported: Mapping[str, Path], configs: Mapping[str, Any]) -> Iterator[Job]:
    """Two batch sizes and two lengths of texts for each program of the systems exported into these folders."""
    for system, folder in exported.items():
        batches = [
            (program, program.example(configs[system], rows, most))
            for program in programs(configs[system])
            for rows, most in ((2, 1000), (5, 6))
        ]
        for number, (program, batch) in enumerate(batches):
            yield Job(system, folder, program, batch, number)


def assert_runs_elsewhere(script: str, banned: set[str], models: Mapping[str, Model], folders: Path) -> None:
    """The systems exported into `folders`, each in one of its name, give what the models give in a fresh process that
    cannot import what is banned.

    The script defines `run(folder, name, batch)`.
    """
    todo = list(jobs({name: folders / name for name in models}, {name: each.config for name, each in models.items()}))
    for job in todo:
        np.savez(job.file("in"), **job.batch)
    arguments = [str(each) for job in todo for each in (job.folder, job.program.name, job.file("in"), job.file("out"))]
    source = FRESH.format(banned=banned) + script + EACH
    done = subprocess.run([sys.executable, "-I", "-c", source, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for job in todo:
        with np.load(job.file("out")) as outputs:
            assert_same_outputs(models[job.system], job.program, job.batch, dict(outputs))


FRESH = """
import pathlib, sys
import numpy as np
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {banned}:
            raise ImportError(name)
sys.meta_path.insert(0, Nowhere())
"""
EACH = """
arguments = iter(sys.argv[1:])
for folder, name, inputs, outputs in zip(arguments, arguments, arguments, arguments):
    found = run(pathlib.Path(folder), name, dict(np.load(inputs)))
    np.savez(outputs, **{key: np.asarray(each) for key, each in found.items()})
"""


def assert_same_outputs(model: Model, program: Program, batch: Arrays, outputs: Mapping[str, Any]) -> None:
    """The outputs are the model's own; those of padding mean nothing."""
    assert outputs.keys() == program.outputs.keys()
    for name, expected in model(**batch).items():
        real = program.real(name, batch)
        assert outputs[name].shape == expected.shape
        what = f"{type(model.module).__name__} {program.name} {name}"
        assert_close(np.asarray(outputs[name])[real], np.asarray(expected)[real], what=what)
