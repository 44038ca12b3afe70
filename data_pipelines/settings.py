"""What the JSON files beside a checkpoint's weights say about its tokenizer (transformers' layout)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmm.errors import UserError

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

MODEL_KINDS = {
    "bart": "Roberta",
    "bert": "Bert",
    "clip": "CLIP",
    "gpt2": "GPT2",
    "llama": "Llama",
    "mt5": "T5",
    "opt": "GPT2",
    "qwen2": "Qwen2",
    "roberta": "Roberta",
    "siglip": "Siglip",
    "t5": "T5",
    "xlm-roberta": "XLMRoberta",
}
"""The tokenizer that goes with a `model_type`, where no file names another."""

SAME_KINDS = {"Bart": "Roberta", "DistilBert": "Bert", "LLaMA": "Llama", "MT5": "T5"}
"""Names of tokenizers that do the same as another."""

Token = Mapping[str, Any]
"""`content`, and whether it is special, strips what stands beside it, and is looked for before normalisation."""


@dataclass(frozen=True)
class Settings:
    """tokenizer_config.json, with what older versions kept in special_tokens_map.json and added_tokens.json."""

    kind: str
    """The family of the tokenizer: Bert, CLIP, GPT2 …; empty where no file names one."""
    values: Mapping[str, Any]
    """tokenizer_config.json."""
    special: Mapping[str, Token]
    """The tokens with a role, by `SPECIAL_NAMES`."""
    added: Mapping[int, Token]
    """Tokens beside the vocabulary, by their ids."""
    config: Mapping[str, Any]
    """config.json: that of the whole model, with its text part's fields on top."""

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `default` where the file says nothing."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{name} in tokenizer_config.json is {value!r}; it must be true or false")
        return default if value is None else value

    @property
    def extra(self) -> list[Token]:
        """Special tokens without a role."""
        value = self.values.get("extra_special_tokens") or self.values.get("additional_special_tokens") or []
        tokens = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(tokens, list):
            raise UserError(f"extra_special_tokens in tokenizer_config.json is {value!r}; it must be a list")
        return [_token(each, "extra_special_tokens", special=True) for each in tokens]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; an empty one where there is no such file.

    Raises:
      UserError: it is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object, not a {type(value).__name__}")
    return value


def sides(value: Any, name: str) -> tuple[int, int]:
    """Height and width, from two positive whole numbers or one for both.

    Raises:
      UserError: it is neither; `name` says of what.
    """
    found = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(found) != 2 or any(type(side) is not int or side < 1 for side in found):
        raise UserError(f"{name} is {value!r}; it must be a positive whole number or two of them")
    return found[0], found[1]


def read_settings(directory: Path) -> Settings:
    """The settings of a directory.

    Raises:
      UserError: a file that is no JSON object, or a token in it that is none.
    """
    config = text_config(read_object(directory / "config.json"))
    values = read_object(directory / "tokenizer_config.json")
    older = {} if "added_tokens_decoder" in values else read_object(directory / "special_tokens_map.json")
    roles = {**values, **older}
    special = {name: _token(roles[name], name, special=True) for name in SPECIAL_NAMES if roles.get(name) is not None}
    return Settings(_kind(values, config), values, special, _added(directory, values, special), config)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the fields of its `text_config`, if it has one, on top; `model_type` stays the whole model's."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    return {**config, **inner, "model_type": config.get("model_type")}


def _kind(values: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    name = values.get("tokenizer_class") or config.get("tokenizer_class")
    if isinstance(name, str) and name not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        short = name.removesuffix("Fast").removesuffix("Tokenizer")
        return SAME_KINDS.get(short, short)
    return MODEL_KINDS.get(str(config.get("model_type")), "")


def _added(directory: Path, values: Mapping[str, Any], special: Mapping[str, Token]) -> dict[int, Token]:
    """By id, from tokenizer_config.json or, of older versions, added_tokens.json."""
    roles = {token["content"] for token in special.values()}
    try:
        if "added_tokens_decoder" in values:
            name = "added_tokens_decoder"
            found = {int(i): _token(token, name) for i, token in values[name].items()}
        else:
            name = "added_tokens.json"
            old = read_object(directory / name)
            found = {int(i): _token(token, name, special=token in roles) for token, i in old.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{name} of {directory} must map tokens and ids to each other: {error}") from error
    return dict(sorted(found.items()))


def _token(value: Any, name: str, special: bool = False) -> Token:
    token = {"content": value} if isinstance(value, str) else value
    if not (isinstance(token, dict) and isinstance(token.get("content"), str)):
        raise UserError(f"{name} is {value!r}; a token must be a string, or an object with its content")
    kept = {
        key: bool(token[key]) for key in ("lstrip", "rstrip", "single_word", "normalized", "special") if key in token
    }
    kept["special"] = kept.get("special", False) or special
    return {"content": token["content"], "normalized": not kept["special"], **kept}
