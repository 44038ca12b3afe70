"""Experiment files, and their fields on the command line."""

import contextlib
import dataclasses
import difflib
import io
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from jmm.errors import UserError
from jmm.experiment import Experiment

STYLE = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)


def read_experiment_file(path: Path) -> Experiment:
    """Runs an experiment file and calls its `experiment()`.

    Raises:
      UserError: no such file, it raises, or it gives no Experiment.
    """
    if not path.is_file():
        raise UserError(f"there is no experiment file {path}")
    # As for a script, modules beside the file can be imported.
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        make = runpy.run_path(str(path)).get("experiment")
        if not callable(make):
            raise UserError(f"{path} defines no function experiment()")
        experiment = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"line {line} of {path}" if line else str(path)
        raise UserError(f"{where} raises {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(experiment, Experiment):
        raise UserError(f"experiment() of {path} gives a {type(experiment).__name__}, not a jmm.experiment.Experiment")
    return experiment


def override(base: Experiment, arguments: Sequence[str], program: str) -> Experiment:
    """The experiment with the fields that are named on the command line; `--help` lists them all and exits.

    Raises:
      UserError: an unknown field, with the nearest one there is, or a value of the wrong type.
    """
    known = dict(field_names(base))
    wrong = next((a for a in arguments if a.startswith("--") and _field(a) not in known and a != "--help"), None)
    if wrong:
        close = difflib.get_close_matches(_field(wrong), known, n=1, cutoff=0.0)
        raise UserError(f"there is no field {_field(wrong)}; the nearest is {close[0]}", code=2)
    if arguments and not arguments[0].startswith("--"):
        raise UserError(f"{arguments[0]} is no field; a field is set as --steps 100", code=2)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(base), default=base, args=list(arguments), prog=program, config=STYLE, use_underscores=True
            )
    except SystemExit as stop:
        if stop.code == 0:
            sys.exit(0)
        raise UserError(_sentence(said.getvalue()), code=2) from None


def field_names(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all fields that can be set, with their values."""
    for field in dataclasses.fields(value):
        name, each = prefix + field.name, getattr(value, field.name)
        nested = isinstance(each, tuple) and any(map(dataclasses.is_dataclass, each))
        if dataclasses.is_dataclass(each):
            yield from field_names(each, name + ".")
        elif nested:
            for index, item in enumerate(each):
                yield from field_names(item, f"{name}.{index}.")
        else:
            yield name, each


def _field(argument: str) -> str:
    return argument.removeprefix("--").split("=")[0].replace("-", "_")


def _sentence(box: str) -> str:
    """What the parser says, without its frame: the lines before the first rule, joined."""
    lines = [re.sub(r"^[│╭╰]\s?|\s*[│╮╯]$", "", line) for line in box.splitlines()]
    text = []
    for line in lines[1:]:
        if set(line.strip()) <= {"─"}:
            break
        text.append(line.strip())
    return " ".join(text) or box.strip()
