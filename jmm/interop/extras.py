"""Packages of which only one exporter has need."""

from collections.abc import Collection
from importlib.util import find_spec

from jmm.errors import UserError


def require(form: str, packages: Collection[str]) -> None:
    """Raises UserError, with the command that installs them, if one of these packages is missing."""
    missing = " ".join(name for name in packages if find_spec(name) is None)
    if missing:
        raise UserError(f"an export to {form} needs packages that are not installed here: pip install {missing}")
