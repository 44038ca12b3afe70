"""Small systems with perturbed weights, and what the tests of exporters share."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.preprocess import Arrays, Preprocess
from jmm.distributed.mesh import MeshShape, make_mesh
from jmm.interop.programs import Program, programs
from jmm.model import Model
from jmm.models import clip, decoder, vit
from jmm.parts.transformer import TransformerConfig
from jmm.protocol import inputs_of
from tests.arrays import assert_close

ENCODER = TransformerConfig(30, 2, 3, 50)
QUICK = TransformerConfig(24, 2, 3, 40, activation="quick_gelu", norm_eps=1e-5)
LLAMA = TransformerConfig(
    *(24, 2, 4, 40, 2),
    activation="silu",
    gated=True,
    norm="rms",
    use_bias=False,
    rotary_base=10_000.0,
)

CONFIGS: dict[str, Any] = {
    "vit": vit.Config(vit.ImageTower(ENCODER, (16, 24), 8), 7),
    "clip": clip.Config(
        vit.ImageTower(QUICK, (16, 16), 8, patch_bias=False, pre_norm=True), clip.TextTower(QUICK, 50, 9), 20
    ),
    "gpt2": decoder.Config(TransformerConfig(30, 2, 5, 120, activation="gelu_tanh", norm_eps=1e-5), 50, 16),
    # Longer than the length from which attention is done in blocks.
    "llama": decoder.Config(LLAMA, 50, 200, first_position=None, tied_head=False),
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


def batches(config: Any) -> Iterator[tuple[Program, Arrays]]:
    """Two batch sizes and two lengths of texts for each program."""
    for program in programs(config):
        for rows, most in ((2, 1000), (5, 6)):
            yield program, program.example(config, rows, most)


def run_fresh(
    script: str, folder: Path, config: Any, banned: Iterable[str]
) -> Iterator[tuple[Program, Arrays, Arrays]]:
    """(program, batch, outputs) of an exported system in a process that cannot import what is banned.

    The script defines `run(folder, name, batch)`.
    """
    jobs = list(batches(config))
    for i, (_, batch) in enumerate(jobs):
        np.savez(folder / f"in{i}.npz", **batch)
    source = FRESH.format(banned=set(banned)) + script + EACH
    arguments = [str(folder), *(program.name for program, _ in jobs)]
    done = subprocess.run([sys.executable, "-I", "-c", source, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for i, (program, batch) in enumerate(jobs):
        with np.load(folder / f"out{i}.npz") as outputs:
            yield program, batch, dict(outputs)


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
folder = pathlib.Path(sys.argv[1])
for i, name in enumerate(sys.argv[2:]):
    outputs = run(folder, name, dict(np.load(folder / f"in{i}.npz")))
    np.savez(folder / f"out{i}.npz", **{key: np.asarray(each) for key, each in outputs.items()})
"""


def assert_same_outputs(model: Model, program: Program, batch: Arrays, outputs: Arrays) -> None:
    """The outputs are the model's own; those of padding mean nothing."""
    assert outputs.keys() == program.outputs.keys()
    for name, expected in model(**batch).items():
        real = program.real(name, batch)
        assert outputs[name].shape == expected.shape
        assert_close(outputs[name][real], np.asarray(expected)[real], what=f"{program.name}: {name}")
