"""Packages of which only one exporter has need."""

from collections.abc import Collection
from importlib.util import find_spec

from jmm.errors import UserError


def require(extra: str, packages: Collection[str]) -> None:
    """Raises UserError, with the command that installs them, if one of these packages is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f'an export to {extra} needs {" and ".join(missing)}, not installed here: pip install "jmm[{extra}]"'
        )
