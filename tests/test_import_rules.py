"""Imports go one way, and the checkout holds nothing but what it should."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RANKS = (
    ("jmm.cli", "jmm.__main__"),
    ("jmm.commands", "jmm.data_commands"),
    ("jmm.overrides", "jmm.planning", "jmm.evaluation", "jmm.interop"),
    ("jmm.training", "jmm.generation"),
    ("jmm.model",),
    ("jmm.experiment",),
    ("jmm.distributed",),
    ("jmm.models",),
    ("jmm.objectives", "jmm.parts"),
    ("jmm.kernels",),
    ("jmm.protocol",),
    ("data_pipelines",),
    ("jmm.errors",),
)
"""From the command down: each may import what stands in its own line or below."""

CONCRETE_DATA = ("data_pipelines.digits", "data_pipelines.folder", "data_pipelines.scenes")
SYSTEMS = ("jmm.models", "jmm.parts", "jmm.objectives")
SYSTEMS_AND_USES = (*SYSTEMS, "jmm.evaluation", "jmm.interop", "jmm.commands", "jmm.cli")

FORBIDDEN = {
    "jmm": ("pickle", "joblib", "torch", "dill", "cloudpickle", "tests", "experiments"),
    "data_pipelines": (
        "pickle",
        "joblib",
        "torch",
        "dill",
        "cloudpickle",
        "jax",
        "flax",
        "optax",
        "orbax",
        "tests",
    ),
    "jmm.training": (*SYSTEMS_AND_USES, *CONCRETE_DATA),
    "jmm.experiment": (*SYSTEMS_AND_USES, *CONCRETE_DATA),
    "jmm.models": (
        *("jmm.training", "jmm.distributed", "jmm.model", "jmm.experiment", "data_pipelines"),
        *("optax", "orbax", "grain", "pathlib", "os", "io", "json", "shutil", "tempfile", "jax.sharding"),
    ),
    "jmm.parts": ("jmm.objectives", "data_pipelines", "optax", "orbax", "pathlib", "jax.sharding"),
    "jmm.objectives": ("jmm.parts", "data_pipelines", "orbax", "pathlib", "jax.sharding"),
    "jmm.kernels": ("data_pipelines", "optax", "orbax", "pathlib"),
}

ALLOWED = {("jmm.models.zoo", "pathlib"), ("jmm.interop.pickled", "torch"), ("jmm.interop.onnx", "torch")}
"""The registry of systems reads their files; PyTorch's own files are read by PyTorch, as weights only; ONNX is written
by way of PyTorch, when it is asked for."""

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "jmm", "data_pipelines", "experiments", "tests", "tpu_scripts"),
    *(".ci", ".git", ".gitignore"),
}


def within(name, package):
    """Whether a module is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def rank(name):
    """Height of a module in the order of imports; None: outside of it."""
    return next((i for i, packages in enumerate(RANKS) if any(within(name, p) for p in packages)), None)


def for_types_only(tree):
    """Everything that stands below `if TYPE_CHECKING:`."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}


def imports(source, module):
    """(imported name, for types only) of every import; `from a import b` counts as a.b."""
    tree = ast.parse(source)
    types = for_types_only(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            yield from ((f"{node.module}.{alias.name}", id(node) in types) for alias in node.names)


def violations(source, module):
    """What a module imports against the rules."""
    for name, types in imports(source, module):
        forbidden = {bad for package, names in FORBIDDEN.items() if within(module, package) for bad in names}
        if any(within(name, bad) and (module, bad) not in ALLOWED for bad in forbidden):
            yield f"{module} imports {name}"
        # The public face imports upwards when it is used, and annotations need no module at run time.
        elif module != "jmm" and not types and rank(name) is not None and rank(name) < rank(module):
            yield f"{module} imports {name}, which stands above it"


def modules():
    """(path, dotted name) of every module of the library."""
    for package in ("jmm", "data_pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield pytest.param(path, name, id=name)


@pytest.mark.parametrize(("path", "module"), list(modules()))
def test_imports_go_one_way(path, module):
    assert module == "jmm" or rank(module) is not None, f"{module} has no place in the order of imports"
    assert list(violations(path.read_text(encoding="utf-8"), module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jmm.training.loop", "from jmm.models import clip"),
        ("jmm.training.loop", "import jmm.evaluation.report"),
        ("jmm.training.loop", "def f():\n    from data_pipelines.digits import Digits"),
        (
            "jmm.training.loop",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jmm.parts import norms",
        ),
        ("jmm.experiment", "from data_pipelines import folder"),
        ("jmm.models.clip", "from jmm.distributed.mesh import make_mesh"),
        ("jmm.models.clip", "import optax"),
        ("jmm.models.clip", "from pathlib import Path"),
        ("jmm.models.clip", "from jax.sharding import Mesh"),
        ("jmm.parts.norms", "from jmm.models.vit import ViT"),
        ("jmm.parts.norms", "from jmm.objectives import contrastive"),
        ("jmm.objectives.contrastive", "import jmm.training.step"),
        ("jmm.kernels.masks", "from jmm.parts import norms"),
        ("jmm.distributed.mesh", "from jmm.training.step import build"),
        ("jmm.model", "from jmm.training.state import TrainState"),
        ("jmm.evaluation.retrieval", "from jmm.cli import main"),
        ("data_pipelines.folder", "import jax.numpy as jnp"),
        ("data_pipelines.folder", "from jmm.protocol import Batch"),
        ("data_pipelines.folder", "import pickle"),
        ("jmm.interop.table", "from torch import load"),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert len(list(violations(source, module))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "jmm.training.loop",
            "from jmm.model import Model\nfrom data_pipelines.pipeline import training_batches",
        ),
        ("jmm.models.zoo", "from pathlib import Path"),
        (
            "jmm.models.clip",
            "import jax\nfrom jmm.kernels import masks\nfrom jmm.models.vit import ImageTower",
        ),
        ("data_pipelines.folder", "import grain\nfrom jmm.errors import UserError"),
        ("jmm.cli", "from jmm.training.loop import train\nfrom jmm.evaluation.report import write_report"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert list(violations(source, module)) == []


def test_top_level_holds_nothing_else():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    names = {path.name for path in ROOT.iterdir()}
    assert {name for name in names - TOP_LEVEL if not any(fnmatch(name, pattern) for pattern in ignored)} == set()
