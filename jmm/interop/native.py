"""A model in jmm's own form: jmm.json (config and preprocessing) and the weights as Orbax writes them."""

import json
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from data_pipelines.preprocess import Preprocess
from data_pipelines.save import copy_tokenizer, with_copied_tokenizer
from jmm.errors import UserError
from jmm.interop.family import abstract
from jmm.interop.folder import Origin, read_json
from jmm.interop.placing import abstract_on
from jmm.model import Model
from jmm.protocol import ModelConfig, inputs_of
from jmm.training.checkpoint import check_manifest, reason, write_manifest
from jmm.training.workdir import from_json, to_json

FILE = "jmm.json"
WEIGHTS = "variables"
VERSION = 1


def write_native(model: Model, folder: Path) -> None:
    """Writes the model into a folder that is there; a manifest lets `read_native` find silent corruption."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / WEIGHTS, dict(model.variables))
    if inputs_of(model.module, {"text": 0}):
        copy_tokenizer(model.preprocess, folder)
    described = {"version": VERSION, "config": to_json(model.config), "preprocess": to_json(model.preprocess)}
    if isinstance(model.origin, Origin):
        described["origin"] = model.origin.described()
        model.origin.copy_companions(folder)
    (folder / FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    write_manifest(folder)


def describe(folder: Path) -> tuple[ModelConfig, Preprocess]:
    """Config and preprocessing.

    Raises:
      UserError: a newer jmm wrote it, or it is damaged.
    """
    described = read_json(folder / FILE)
    if described.get("version") != VERSION:
        raise UserError(f"{folder / FILE} is of version {described.get('version')!r}; this jmm reads {VERSION}")
    config, preprocess = (from_json(described.get(name), name) for name in ("config", "preprocess"))
    if not isinstance(config, ModelConfig) or not isinstance(preprocess, Preprocess):
        raise UserError(f"{folder / FILE} describes no model")
    return config, with_copied_tokenizer(preprocess, folder)


def origin_of(folder: Path) -> Origin | None:
    """Where the model was read from before it was written here, so that it can be written back as it was there."""
    described = read_json(folder / FILE).get("origin")
    return None if described is None else Origin.from_description(described, folder)


def read_native(folder: Path, mesh: Mesh) -> tuple[ModelConfig, Any, Preprocess]:
    """Config, weights (float32, on the mesh) and preprocessing.

    Raises:
      UserError: a file is missing or is not as it was written, or a newer jmm wrote it.
    """
    config, preprocess = describe(folder)
    placed = {name: abstract_on(tree, mesh) for name, tree in abstract(config).items()}
    try:
        check_manifest(folder)
        with ocp.StandardCheckpointer() as checkpointer:
            return config, checkpointer.restore(folder.absolute() / WEIGHTS, placed), preprocess
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise UserError(f"{folder} is damaged ({reason(error)}); convert or copy it again") from error
