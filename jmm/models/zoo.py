"""The registry of systems, derived from their files: it reads docstrings and imports nothing."""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class System:
    """What a system's file says of itself."""

    title: str
    """Name and paper."""
    text: str
    """The whole docstring: data flow, inputs, outputs, and where the system was checked."""
    variants: tuple[str, ...]
    """Its named configurations."""


def systems() -> dict[str, System]:
    """Every file of this folder that names variants, by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        text, variants = ast.get_docstring(tree), _variants(tree)
        if text and variants:
            listed = f"{text}\n\nVariants: {', '.join(variants)}"
            found[path.stem] = System(text.splitlines()[0].rstrip("."), listed, variants)
    return found


def _variants(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VARIANTS"
        if named and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return tuple(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    return ()
