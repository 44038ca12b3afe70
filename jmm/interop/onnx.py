"""A system as ONNX models for onnxruntime, by way of its twin in PyTorch.

Each program (image and text for a system with two towers) is one file, image.onnx, with inputs and outputs in the names
and shapes of jmm; export.json says which. The weights of a large one lie in files beside it. Nothing is written that
onnxruntime does not compute as jmm does.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jmm.errors import UserError
from jmm.interop.extras import require
from jmm.interop.folder import write_folder_of
from jmm.interop.onnx_twins import TWINS
from jmm.interop.programs import BATCH, Program, describe, needed_weights, programs, write_description
from jmm.model import Model

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
    with tempfile.TemporaryDirectory() as published:
        write_folder_of(model.config, model.variables, Path(published))
        twin = _load(Path(published))
    run = TWINS[type(twin).__name__](twin)
    for file, program in found.items():
        size = sum(prod(each.shape) * each.dtype.itemsize for each in needed_weights(model, [program]).values())
        with _quiet():
            _write(partial(run, program.name), twin, program, model, folder / file, size > SINGLE_FILE)
        _check(model, program, folder / file)
    write_description(describe(model, found, format="ONNX", opset=OPSET, twin=type(twin).__name__), folder)


def _load(folder: Path) -> Any:
    """The twin in PyTorch."""
    import transformers

    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    if architecture not in TWINS:
        raise UserError(f"ONNX is written by way of PyTorch, and for {architecture} there is no way yet")
    twin: Any = getattr(transformers, architecture).from_pretrained(folder, dtype="float32")
    return twin.eval()


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

    batch = program.example(model.config, 2, {name: min(most, 12) for name, most in program.longest.items()})
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
        output_names=list(program.outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=external_data,
        verbose=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of itself: packages that it could use, its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check(model: Model, program: Program, path: Path) -> None:
    """Raises UserError unless onnxruntime gives what the model gives, for two batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, part in ((3, 1), (1, 2)):
        lengths = {name: max(most // part, 1) for name, most in program.longest.items()}
        batch = program.example(model.config, rows, lengths)
        outputs = dict(zip(program.outputs, session.run(list(program.outputs), batch), strict=True))
        for name, expected in model(**batch).items():
            real = program.real(name, batch)
            worst = float(np.abs(outputs[name] - np.asarray(expected))[real].max())
            if not worst <= TOLERANCE * float(np.abs(expected[real]).max()):
                raise UserError(
                    f"{path.name} is not written: its {name} is off by {worst:.2g} in onnxruntime for a batch of {rows}"
                )
