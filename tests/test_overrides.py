"""Experiment files and fields on the command line: everything can be set, and a mistake is one sentence."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.quickstart import experiment
from jmm.errors import UserError
from jmm.overrides import field_names, override, read_experiment_file

BASE = experiment()
FIELDS = dict(field_names(BASE))
CHOICES = {
    "optimizer.schedule": "linear",
    "precision": "bfloat16",
    "model.objective": "sigmoid",
    "model.equal_captions": "positives",
    "model.image.pool": "class",
    "model.image.positions": "sincos",
    "model.image.stages": (1, 2),
    "model.text.mask": "full",
    "model.text.pool": "last",
}


def words(name: str, value: Any) -> tuple[Any, list[str]]:
    """Another value for a field, and how it is written on the command line."""
    kind = name.rsplit(".", 1)[-1]
    if name in CHOICES:
        other: Any = CHOICES[name]
    elif kind in ("activation", "norm", "norm_order", "remat"):
        other = {"activation": "silu", "norm": "rms", "norm_order": "post", "remat": "dots"}[kind]
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, int | float):
        other = value + 1
    elif isinstance(value, str):
        other = value + " two words"
    elif isinstance(value, tuple) and value and isinstance(value[0], int):
        other = tuple(item + 1 for item in value)
    elif isinstance(value, tuple):
        other = ("first one", "second")
    else:
        assert value is None
        other = True if kind.endswith("_bias") else 3
    return other, [str(item) for item in (other if isinstance(other, tuple) else (other,))]


def test_every_field_can_be_set_by_its_name():
    wanted, arguments = {}, []
    for name, value in FIELDS.items():
        if name == "evaluations":
            continue
        wanted[name], given = words(name, value)
        arguments += [f"--{name}", *given]
    found = dict(field_names(override(BASE, arguments, "jmm train")))
    assert found == wanted
    assert len(found) > 60


def test_nothing_set_changes_nothing():
    assert override(BASE, [], "jmm train") == BASE


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--optimizer.learning_rate", "1e-3"], "optimizer.learning_rate", 1e-3),
        (["--optimizer.learning-rate=1e-3"], "optimizer.learning_rate", 1e-3),
        (["--optimizer.clip_norm", "None"], "optimizer.clip_norm", None),
        (["--checkpoint.best", "None"], "checkpoint.best", None),
        (["--mesh.data", "-1"], "mesh.data", -1),
        (["--optimizer.freeze", "^image/", "bias$"], "optimizer.freeze", ("^image/", "bias$")),
        (["--evaluations.1.ranks", "1", "3"], "evaluations.1.ranks", (1, 3)),
    ],
)
def test_one_field_and_no_other(arguments, name, value):
    assert dict(field_names(override(BASE, arguments, "jmm train"))) == {**FIELDS, name: value}


def sentence(caught: Any) -> str:
    """The message, if it is one line of plain text."""
    message = str(caught.value)
    assert message and not set(message) & set("\n\r│╭╰─╮╯"), message
    return message


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("stepps", "steps"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimizer.warmup-step", "optimizer.warmup_steps"),
        ("model.image.encoder.dept", "model.image.encoder.depth"),
        ("xyz", ""),
    ],
)
@pytest.mark.parametrize("form", ["--{} 1", "--{}=1", "--{}"])
def test_an_unknown_field_is_named_with_the_nearest(wrong, nearest, form):
    with pytest.raises(UserError) as caught:
        override(BASE, form.format(wrong).split(), "jmm train")
    message = sentence(caught)
    assert message.startswith(f"there is no field {wrong.replace('-', '_')}; the nearest is {nearest}")
    assert message.rsplit(" ", 1)[1] in FIELDS
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "many"], ["steps", "many"]),
        (["--steps", "1.5"], ["steps", "1.5"]),
        (["--optimizer.learning_rate", "fast"], ["optimizer.learning_rate", "fast"]),
        (["--optimizer.clip_norm", "tight"], ["optimizer.clip_norm", "tight"]),
        (["--optimizer.schedule", "exponential"], ["optimizer.schedule", "exponential", "cosine"]),
        (["--precision", "float16"], ["precision", "float16", "bfloat16"]),
        (["--model.image.encoder.scan", "maybe"], ["model.image.encoder.scan", "maybe", "True"]),
        (["--model.image.image_size", "16"], ["model.image.image_size"]),
        (["--model.image.image_size", "16", "x"], ["model.image.image_size", "x"]),
        (["--evaluations.1.ranks", "one"], ["evaluations.1.ranks", "one"]),
        (["--steps"], ["steps"]),
        (["--steps", "--seed", "5"], ["steps"]),
        (["--steps="], ["steps"]),
        (["--steps", "5", "oops"], ["oops"]),
        (["oops"], ["oops"]),
        (["-x", "5"], ["-x"]),
        (["--steps", "5", "-x"], ["-x"]),
        (["--model.image", "5"], ["model.image"]),
        (["--evaluations.2.ranks", "5"], ["evaluations.2.ranks"]),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_one_sentence(arguments, says):
    with pytest.raises(UserError) as caught:
        override(BASE, arguments, "jmm train")
    message = sentence(caught)
    assert all(word in message for word in says), message
    assert caught.value.code == 2


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        override(BASE, ["--help"], "jmm train")
    assert not caught.value.code
    text = capsys.readouterr().out
    assert [name for name in FIELDS if f"--{name}" not in text] == []


def test_fields_are_leaves():
    assert not any(is_dataclass(value) for value in FIELDS.values())
    assert {"seed", "optimizer.freeze", "model.text.encoder.width", "evaluations.0.labels"} <= FIELDS.keys()


def test_quickstart_reads():
    file = Path(__file__).parents[1] / "experiments" / "quickstart.py"
    assert read_experiment_file(file) == BASE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", ["defines no function experiment()"]),
        ("experiment = 5\n", ["defines no function experiment()"]),
        ("import os\nraise ValueError('no good')\n", ["line 2", "ValueError: no good"]),
        ("import nonesuch\n", ["line 1", "ModuleNotFoundError", "nonesuch"]),
        ("def experiment():\n    return 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        (
            "def inner():\n    raise KeyError('k')\n\ndef experiment():\n    return inner()\n",
            ["line 2", "KeyError"],
        ),
        ("def experiment(:\n    pass\n", ["line 1", "SyntaxError"]),
        ("x = 'a\0b'\n", ["null"]),
        ("def experiment():\n    return 5\n", ["gives a int, not a jmm.experiment.Experiment"]),
        ("def experiment():\n    pass\n", ["gives a NoneType, not a jmm.experiment.Experiment"]),
        ("def experiment(size):\n    pass\n", ["TypeError", "size"]),
        ("def experiment():\n    raise ValueError('one\\n  two')\n", ["line 2", "one", "two"]),
        (
            "from jmm.errors import UserError\n\ndef experiment():\n    raise UserError('as I say')\n",
            ["as I say"],
        ),
    ],
    ids=lambda value: value.splitlines()[-1].strip() if isinstance(value, str) else "",
)
def test_a_bad_experiment_file_is_one_sentence(tmp_path, text, says):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_experiment_file(file)
    message = sentence(caught)
    assert all(word in message for word in says), message
    assert "mine.py" in message or "as I say" in message


@pytest.mark.parametrize("name", ["missing.py", ""])
def test_no_experiment_file(tmp_path, name):
    with pytest.raises(UserError, match="there is no experiment file"):
        read_experiment_file(tmp_path / name)
