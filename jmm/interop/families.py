"""Every family of published models."""

from collections.abc import Mapping
from typing import Any

from jmm.errors import UserError
from jmm.interop import clip, decoder, encoder, encoder_decoder, open_clip, paligemma, vit, vqmodel
from jmm.interop.family import Family, write_config

MODULES = (vit, clip, open_clip, encoder, decoder, encoder_decoder, paligemma, vqmodel)

FAMILIES = {family.model_type: family for module in MODULES for family in module.FAMILIES}
"""By the `model_type` of their config.json, or with diffusers its `_class_name`."""


def model_type_of(config_json: Mapping[str, Any]) -> Any:
    """What a parsed config.json calls its family; None where it says nothing."""
    return config_json.get("model_type", config_json.get("_class_name"))


def family_of(config_json: Mapping[str, Any]) -> Family:
    """The family of a parsed config.json.

    Raises:
      UserError: it is none of ours, naming those that are.
    """
    model_type = model_type_of(config_json)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model_type in config.json is {model_type!r}, which is not supported; {known} are")
    return FAMILIES[model_type]


def as_used(config: Any, variables: Any) -> tuple[Any, Any]:
    """Our config and variables without what only training needs."""
    for family in FAMILIES.values():
        if isinstance(config, family.config):
            config, variables = family.used(config, variables)
    return config, variables


def family_for(config: Any) -> tuple[Family, dict[str, Any]]:
    """The first family that can express our config, and its config.json.

    Raises:
      UserError: none can, with what each would lose.
    """
    problems = []
    for family in FAMILIES.values():
        if isinstance(config, family.config):
            try:
                return family, write_config(family, config)
            except UserError as problem:
                problems.append(str(problem))
    if problems:
        raise UserError("; ".join(problems))
    known = ", ".join(FAMILIES)
    raise UserError(f"a {type(config).__module__} has no published form to write; the families are {known}")
