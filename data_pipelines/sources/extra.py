"""Packages that only some layouts need."""

import importlib
from typing import Any

from jmm.errors import UserError


def needed(module: str, extra: str, path: str) -> Any:
    """The module.

    Raises:
      UserError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", 1)[0]
        raise UserError(f'{path} is read with {package}: pip install "jmm[{extra}]" ({error})') from error
