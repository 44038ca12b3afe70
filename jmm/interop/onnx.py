"""A system as ONNX models for onnxruntime, by way of its twin in PyTorch.

Each program (image and text for a system with two towers) is one file, image.onnx, with inputs and outputs in the names
and shapes of jmm; export.json says which. An output that is called as an input is, the image of a tokenizer, is
image_out, since names in a graph must differ. The weights of a large one lie in files beside it. Nothing is written
that onnxruntime does not compute as jmm does.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmm.errors import UserError
from jmm.interop.extras import require
from jmm.interop.families import FAMILIES
from jmm.interop.family import Family, write_config
from jmm.interop.folder import CONFIG, SHARD_BYTES
from jmm.interop.onnx_twins import TWINS
from jmm.interop.programs import BATCH, Program, needed_weights, programs, write_description
from jmm.interop.stored import write_folder
from jmm.interop.table import plan_export
from jmm.model import Model
from jmm.protocol import ModelConfig

OPSET = 18
SINGLE_FILE = 1_500_000_000
"""Bytes of weights up to which they lie in the .onnx file itself, which cannot be larger than 2 GB."""
TOLERANCE = 1e-4
"""Largest difference to jmm in float32, relative to the largest entry of an output."""


def export_onnx(model: Model, folder: Path) -> None:
    """Writes the programs of a system into an empty folder, each tried at two batch sizes.

    Raises:
      UserError: packages are missing, the system has no twin in PyTorch, or onnxruntime computes something else.
    """
    require("onnx", ["torch", "transformers", "onnx", "onnxscript", "onnxruntime"])
    found = {f"{each.name}.onnx": each for each in programs(model.config)}
    with tempfile.TemporaryDirectory() as published, _quiet():
        twin = load_twin(model, Path(published))
    run = TWINS[type(twin).__name__](twin)
    for file, program in found.items():
        size = sum(prod(each.shape) * each.dtype.itemsize for each in needed_weights(model, [program]).values())
        with _quiet():
            _write(partial(run, program.name), twin, program, model, folder / file, size > SINGLE_FILE)
        _check(model, program, folder / file)
    named = {file: replace(each, outputs=_renamed(each)) for file, each in found.items()}
    write_description(model, named, folder, format="ONNX", opset=OPSET, twin=type(twin).__name__)


def load_twin(model: Model, folder: Path) -> Any:
    """The twin of a model in PyTorch, by way of an empty folder.

    Raises:
      UserError: there is none, or it wants more weights.
    """
    family, config_json = _family(model.config)
    (folder / CONFIG).write_text(json.dumps(config_json), encoding="utf-8")
    write_folder(folder, plan_export(family.table(model.config), model.variables), {}, SHARD_BYTES, family.stem)
    architecture, load = _loader(config_json)
    twin, found = load(folder, output_loading_info=True)
    missing = {name.split(".")[0] for name in found["missing_keys"]}
    if missing == {"pooler"}:
        twin.pooler = None  # a body without one is given one of noise
    elif missing:
        raise UserError(f"{architecture} in PyTorch wants weights that this model lacks: {', '.join(missing)}")
    return twin.eval()


def _loader(config_json: Mapping[str, Any]) -> tuple[str, Callable[..., Any]]:
    """The name of their class, and what loads it."""
    if "_class_name" in config_json:
        require("onnx", ["diffusers"])
        import diffusers

        name = config_json["_class_name"]
        return name, partial(getattr(diffusers, name).from_pretrained, low_cpu_mem_usage=False)
    import transformers

    name = config_json["architectures"][0]
    # Eager: how PyTorch lays out what its fused attention gives is lost on the way to ONNX.
    return name, partial(getattr(transformers, name).from_pretrained, dtype="float32", attn_implementation="eager")


def _family(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The first family that can express our config and has a twin, and its config.json."""
    problems = []
    for family in FAMILIES.values():
        if family.config is type(config) and not TWINS.keys().isdisjoint(family.architectures):
            try:
                return family, write_config(family, config)
            except UserError as problem:
                problems.append(str(problem))
    raise UserError(
        "ONNX is written by way of PyTorch, and this model has no twin there: "
        + ("; ".join(problems) or f"none of them is a {type(config).__module__}")
    )


def _write(
    run: Callable[..., Mapping[str, Any]], twin: Any, program: Program, model: Model, path: Path, external_data: bool
) -> None:
    import torch

    class Module(torch.nn.Module):
        """The twin with our inputs and outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.twin = twin

        def forward(self, *fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = run(**dict(zip(program.inputs, fields, strict=True)))
            return tuple(outputs[name] for name in program.outputs)

    batch = program.example(model.config, 2, 12)
    free = {BATCH: torch.export.Dim(BATCH)}
    free |= {name: torch.export.Dim(name, max=most) for name, most in program.longest.items()}
    shapes = tuple(
        {axis: free[each] for axis, each in enumerate(shape) if isinstance(each, str)}
        for shape in program.inputs.values()
    )
    torch.onnx.export(
        Module().eval(),
        tuple(torch.from_numpy(batch[name]) for name in program.inputs),
        str(path),
        dynamic_shapes={"fields": shapes},
        input_names=list(program.inputs),
        output_names=list(_renamed(program)),
        opset_version=OPSET,
        dynamo=True,
        external_data=external_data,
        verbose=False,
    )


def _renamed(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The outputs by their names in the graph, in their order."""
    return {f"{name}_out" if name in program.inputs else name: each for name, each in program.outputs.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and PyTorch's exporter say of themselves: bars of progress, tokens that a config does
    not name, packages that could be used, their own deprecated calls."""
    from transformers.utils import logging as theirs

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "transformers")]
    levels, bars = [each.level for each in loggers], theirs.is_progress_bar_enabled()
    for each in loggers:
        each.setLevel(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if bars:
            theirs.enable_progress_bar()


def _check(model: Model, program: Program, path: Path) -> None:
    """Raises UserError unless onnxruntime gives what the model gives in float32, for two batch sizes."""
    import onnxruntime

    model = replace(model, module=model.config.build(jnp.float32))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, most in ((3, 100), (1, 5)):
        batch = program.example(model.config, rows, most)
        outputs = dict(zip(program.outputs, session.run(list(_renamed(program)), batch), strict=True))
        with jax.default_matmul_precision("highest"):
            expected = {name: np.asarray(each) for name, each in model(**batch).items()}
        for name, each in expected.items():
            real = program.real(name, batch)
            worst = np.abs(outputs[name] - each)[real].max()
            if not worst <= TOLERANCE * np.abs(each[real]).max():
                raise UserError(
                    f"{path.name} is not written: its {name} is off by {worst:.2g} in onnxruntime for a batch of {rows}"
                )
