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
from jmm.interop.families import FAMILIES, family_for, family_of, model_type_of
from jmm.interop.family import Family, Renamed, abstract, plain, read_config, write_config
from jmm.interop.pickled import open_pickle
from jmm.interop.placing import place
from jmm.interop.stored import INDEX, open_folder, write_folder
from jmm.interop.table import plan_export, plan_import
from jmm.protocol import ModelConfig
from jmm.training.workdir import from_json, to_json

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

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "config": to_json(self.config),
            "config_json": self.config_json,
            "names": self.names,
            "dtypes": {name: dtype.name for name, dtype in self.dtypes.items()},
        }

    @classmethod
    def from_description(cls, described: Any, folder: Path) -> "Origin":
        """Undoes `described` for a model that now lies in `folder`.

        Raises:
          UserError: it is damaged.
        """
        try:
            config_json, names = described["config_json"], described["names"]
            dtypes = {name: np.dtype(dtype) for name, dtype in described["dtypes"].items()}
            family = next((each for each in OWN_FILES if model_type_of(config_json) is None), None)
            config = from_json(described["config"], "origin.config")
            return cls(folder, family or family_of(config_json), config, config_json, names, dtypes)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the origin that {folder} describes is damaged ({error})") from error

    def copy_companions(self, folder: Path) -> None:
        """What stands beside the weights and goes where they go."""
        if (self.folder / GENERATION).exists():
            shutil.copyfile(self.folder / GENERATION, folder / GENERATION)


def read_folder(folder: Path, allow_pickle: bool = False) -> tuple[Origin, Renamed]:
    """What a folder holds: its config and its tensors, none of them read yet.

    Raises:
      UserError: no config.json, a family or a field that is not supported, files that are missing, torn or pickled.
    """
    whole = (folder / CONFIG).exists() and _held(folder, "model", "pytorch_model.bin")
    own = None if whole else next((each for each in OWN_FILES if (folder / each.config_file).exists()), None)
    config_json = read_json(folder / (own.config_file if own else CONFIG))
    family = own or family_of(config_json)
    tensors = Renamed(_open(folder, family, allow_pickle), family.renames)
    config = read_config(family, config_json, tensors)
    names = {name: theirs for name, theirs in tensors.original.items() if not re.fullmatch(family.ignored, name)}
    dtypes = {name: np.dtype(tensors[name].dtype) for name in names}
    for row in family.table(config):
        if row.held(tensors, None) == (row.older,):  # what older files held once is written as it is held today
            names[row.theirs], dtypes[row.theirs] = row.theirs, dtypes[row.older]
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
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"weights cannot be written as {dtype}; float32, bfloat16 and float16 are types of floats")
    family, written = _described(config, origin)
    planned = plan_export(family.table(config), variables, origin.names if origin else None)
    types = {name: np.dtype(each.dtype) for name, each in planned.items()} | dict(origin.dtypes if origin else {})
    if dtype is not None:
        types = {name: np.dtype(dtype) if jnp.issubdtype(each, jnp.floating) else each for name, each in types.items()}
    widest = max(
        (each for each in types.values() if jnp.issubdtype(each, jnp.floating)), key=lambda each: each.itemsize
    )
    if "model_type" in written and (dtype is not None or not (origin and origin.dtypes)):
        written |= {"dtype": widest.name}
        written.pop("torch_dtype", None)  # what transformers 4 called it
    (folder / family.config_file).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if origin:
        origin.copy_companions(folder)
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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def is_published(folder: Path) -> bool:
    """Whether a folder says that it holds a published model."""
    return any((folder / name).exists() for name in (CONFIG, *(family.config_file for family in OWN_FILES)))


def _held(folder: Path, stem: str, pickle: str) -> list[str]:
    """The files of a folder that hold its weights or list those that do, the best first."""
    names = [f"{file}{end}" for file in (f"{stem}.safetensors", pickle) for end in ("", INDEX)]
    return [name for name in names if (folder / name).exists()]


def _open(folder: Path, family: Family, allow_pickle: bool) -> Mapping[str, Any]:
    held = _held(folder, family.stem, family.pickle)
    if not held or held[0].startswith(f"{family.stem}.safetensors"):
        return open_folder(folder, family.stem)
    if not allow_pickle:
        raise UserError(
            f"{folder} holds its weights as {held[0]}, a pickle file, which may run code when it is read; "
            "take the *.safetensors of the model, or write them with jmm convert SRC DST --to hf --allow-pickle"
        )
    return open_pickle(folder, held[0])


def _described(config: ModelConfig, origin: Origin | None) -> tuple[Family, dict[str, Any]]:
    if origin is None:
        return family_for(config)
    if plain(config) == plain(origin.config):
        return origin.family, dict(origin.config_json)
    before, after = origin.family.write(origin.config), write_config(origin.family, config)
    return origin.family, _changed(origin.config_json, before, after)


def _changed(theirs: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Their config.json with what differs between two of ours; whatever else it says stays."""
    found = dict(theirs)
    for name in [name for name in found if name.endswith("_dict") and isinstance(found[name], Mapping)]:
        # An older copy of the field without _dict, which would be read in place of it.
        found[name.removesuffix("_dict")] = found.pop(name)
    for name, value in after.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = _changed(found[name], before.get(name, {}), value)
        elif value != before.get(name):
            found[name] = value
    return found
