"""A model into a folder of another form, whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.save import save_preprocess
from jmm.errors import UserError
from jmm.interop.families import as_used
from jmm.interop.folder import Origin, write_folder_of
from jmm.interop.native import write_native
from jmm.model import Model
from jmm.protocol import inputs_of
from jmm.training.checkpoint import reason


def _hf(model: Model, folder: Path, **settings: Any) -> None:
    origin = model.origin if isinstance(model.origin, Origin) else None
    write_folder_of(model.config, model.variables, folder, origin, **settings)
    save_preprocess(model.preprocess, folder, inputs_of(model.module, {"image": 0, "text": 0}))


def _stablehlo(model: Model, folder: Path) -> None:
    from jmm.interop.stablehlo import export_stablehlo

    export_stablehlo(model, folder)


def _onnx(model: Model, folder: Path) -> None:
    from jmm.interop.onnx import export_onnx

    export_onnx(model, folder)


def _savedmodel(model: Model, folder: Path) -> None:
    from jmm.interop.savedmodel import export_savedmodel

    export_savedmodel(model, folder)


FORMATS: dict[str, Callable[..., Any]] = {
    "hf": _hf,
    "jmm": write_native,
    "stablehlo": _stablehlo,
    "onnx": _onnx,
    "savedmodel": _savedmodel,
}
"""What writes a model into an empty folder, by the name of the form."""


def save(model: Model, path: str | Path, format: str = "hf", **settings: Any) -> None:
    """Writes a model into a new folder: `hf` as transformers reads it with `from_pretrained`, `jmm` as `jmm.load` does,
    `stablehlo`, `onnx` or `savedmodel` to be run elsewhere. Of all but `jmm`, what only training needs is left out.

    `settings` for `hf`: `dtype`, the type of floats (as they were read, or float32), and `shard_bytes`, the size of the
    largest file.

    Raises:
      UserError: the form cannot express the model; the folder exists or cannot be written. Nothing is left of it then.
    """
    if format not in FORMATS:
        raise UserError(f"there is no form {format!r}; there are {', '.join(FORMATS)}")
    if format != "jmm":
        config, variables = as_used(model.config, model.variables)
        if config != model.config:
            model = replace(model, config=config, module=config.build(model.module.dtype), variables=variables)
    with new_folder(Path(path)) as folder:
        FORMATS[format](model, folder, **settings)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when all is written, and vanishes when it is not."""
    check_target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        folder = beside / path.name  # with the rights that a new folder has here
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    try:
        yield folder
        folder.rename(path)
    except (UserError, TypeError, AttributeError, LookupError, AssertionError):
        raise
    except Exception as error:  # a full disk comes as many kinds
        raise UserError(f"{path} cannot be written ({reason(error)}); nothing is left of it") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_target(path: Path) -> None:
    """Raises UserError if something is there already."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists; choose another folder, or take it away")
