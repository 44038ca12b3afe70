"""Published model folders: config.json and *.safetensors, as transformers reads and writes them."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jmm.errors import UserError
from jmm.interop.families import FAMILIES, family_for, family_of
from jmm.interop.family import Family, Renamed, abstract, plain, read_config, write_config
from jmm.interop.pickled import open_pickle
from jmm.interop.placing import place
from jmm.interop.stored import open_folder, write_folder
from jmm.interop.table import plan_export, plan_import
from jmm.protocol import ModelConfig

CONFIG = "config.json"
GENERATION = "generation_config.json"
"""How transformers writes with the model unless told; it goes along."""
OWN_FILES = [family for family in FAMILIES.values() if family.config_file != CONFIG]
"""Families whose config lies in a file of another name."""
SHARD_BYTES = 5 * 10**9
"""Of the largest file that is written, as transformers has it."""


@dataclass(frozen=True)
class Origin:
    """The published folder that a model was read from: what is written back is as it was there."""

    folder: Path
    """The folder."""
    family: Family
    """Its family."""
    config: ModelConfig
    """Our config as read."""
    config_json: Mapping[str, Any]
    """Its config.json."""
    names: Mapping[str, str]
    """The weights' names there, by canonical name."""
    dtypes: Mapping[str, np.dtype]
    """The weights' types there, by canonical name; empty once the weights are others."""

    def changed(self) -> "Origin":
        """For other weights: they are written in their own types."""
        return replace(self, dtypes={})


def read_folder(folder: Path, allow_pickle: bool = False) -> tuple[Origin, Renamed]:
    """What a folder holds: its config and its tensors, none of them read yet.

    Raises:
      UserError: no config.json, a family or a field that is not supported, files that are missing, torn or pickled.
    """
    own = next((each for each in OWN_FILES if (folder / each.config_file).exists()), None)
    config_json = read_json(folder / (own.config_file if own else CONFIG))
    family = own or family_of(config_json)
    tensors = Renamed(_open(folder, family.stem, allow_pickle), family.renames)
    config = read_config(family, config_json, tensors)
    names = {name: theirs for name, theirs in tensors.original.items() if not re.fullmatch(family.ignored, name)}
    dtypes = {name: np.dtype(tensors[name].dtype) for name in names}
    return Origin(folder, family, config, config_json, names, dtypes), tensors


def read_variables(origin: Origin, tensors: Renamed, mesh: Mesh, dtype: Any = jnp.float32) -> Any:
    """The weights of a folder on the devices of a mesh, floats as `dtype`.

    Raises:
      UserError: listing every tensor that is missing, left over or of a wrong shape.
    """
    shapes = abstract(origin.config)
    pieces = plan_import(origin.family.table(origin.config), tensors, shapes, origin.family.ignored)

    def typed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)

    return place(pieces, tensors, jax.tree.map(typed, shapes), mesh)


def write_folder_of(
    config: ModelConfig,
    variables: Any,
    folder: Path,
    origin: Origin | None = None,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and *.safetensors into a folder that is there.

    Names, types and the rest of config.json are those of `origin` if there is one; else the family is the first that
    can express the config. `dtype` is another type for floats.

    Raises:
      UserError: a config that no family can express, tensors that ours do not make.
    """
    family, written = _described(config, origin)
    planned = plan_export(family.table(config), variables, origin.names if origin else None)
    types = {name: np.dtype(each.dtype) for name, each in planned.items()} | dict(origin.dtypes if origin else {})
    if dtype is not None:
        types = {name: np.dtype(dtype) if jnp.issubdtype(each, jnp.floating) else each for name, each in types.items()}
    widest = max(
        (each for each in types.values() if jnp.issubdtype(each, jnp.floating)), key=lambda each: each.itemsize
    )
    if family.config_file == CONFIG and (dtype is not None or not (origin and origin.dtypes)):
        written |= {"dtype": widest.name}
        written.pop("torch_dtype", None)  # what transformers 4 called it
    (folder / family.config_file).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if origin and (origin.folder / GENERATION).exists():
        shutil.copyfile(origin.folder / GENERATION, folder / GENERATION)
    theirs = origin.names if origin else {name: name for name in planned}
    outgoing = {theirs[name]: each for name, each in planned.items()}
    write_folder(folder, outgoing, {theirs[name]: types[name] for name in planned}, shard_bytes, family.stem)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: no such file, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def is_published(folder: Path) -> bool:
    """Whether a folder says that it holds a published model."""
    return any((folder / name).exists() for name in (CONFIG, *(family.config_file for family in OWN_FILES)))


def _open(folder: Path, stem: str, allow_pickle: bool) -> Mapping[str, Any]:
    safe = any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
    pickled = [name for end in ("", ".index.json") if (folder / (name := f"pytorch_{stem}.bin{end}")).exists()]
    if safe or not pickled:
        return open_folder(folder, stem)
    if not allow_pickle:
        raise UserError(
            f"{folder} holds its weights as {pickled[0]}, a pickle file, which may run code when it is read; "
            "take the *.safetensors of the model, or say --allow-pickle to read it as weights only"
        )
    return open_pickle(folder, pickled[0])


def _described(config: ModelConfig, origin: Origin | None) -> tuple[Family, dict[str, Any]]:
    if origin is None:
        return family_for(config)
    if plain(config) == plain(origin.config):
        return origin.family, dict(origin.config_json)
    return origin.family, {**origin.config_json, **write_config(origin.family, config)}
