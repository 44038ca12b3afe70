"""A model for images of another size: its learned positions interpolated once."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jmm.errors import UserError
from jmm.models.vit import ImageTower
from jmm.parts.positions import resize_positions
from jmm.protocol import Variables

Path = tuple[str, ...]


def at_resolution(
    config: Any, variables: Variables, image_size: tuple[int, int], offset: float = 0.0
) -> tuple[Any, dict[str, Any]]:
    """The config and variables of the same model for images of this height and width.

    Every `ImageTower` in the config gets the size, and its table of learned positions is interpolated to the new grid,
    cubic, as transformers' `interpolate_pos_encoding` does (Dosovitskiy et al. 2021, section 3.2). The module would do
    so for each image; done once, the table can be trained further and exported. With `offset` 0.1 the interpolation is
    that of DINO's own code, which is not transformers' for the same weights.

    Raises:
      UserError: patches do not divide the size, or the config has no such tower.
    """
    found = dict(towers(config))
    if not found:
        raise UserError("the model has no vision transformer whose positions could be interpolated")
    params = variables["params"]
    for path, tower in found.items():
        if tower.image_size == image_size:
            continue
        if any(side < 1 or side % tower.patch_size for side in image_size):
            raise UserError(
                f"images of {image_size[0]}×{image_size[1]} do not divide into patches of {tower.patch_size} pixels"
            )
        new = replace(tower, image_size=image_size, crop=False)
        config = _put(config, path, new)
        if tower.positions == "learned":
            place = (*path, "positions", "table")
            resize = partial(resize_positions, old=tower.grid, new=new.grid, prefix=tower.prefix, offset=offset)
            table = _get(params, place)
            # Jitted, for the table may lie on devices of several processes.
            params = _put(params, place, jax.jit(resize)(jnp.asarray(table, jnp.float32)).astype(table.dtype))
    return config, {**variables, "params": params}


def towers(config: Any, path: Path = ()) -> Iterator[tuple[Path, ImageTower]]:
    """Every tower in a config, and where; a tower's parameters stand under the same names."""
    if isinstance(config, ImageTower):
        yield path, config
    elif is_dataclass(config):
        for field in fields(config):
            yield from towers(getattr(config, field.name), (*path, field.name))


def _get(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Any, path: Path, value: Any) -> Any:
    """A copy of a config or of parameters with another value at one place."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(tree, Mapping):
        return {**tree, first: _put(tree[first], rest, value)}
    return replace(tree, **{first: _put(getattr(tree, first), rest, value)})
