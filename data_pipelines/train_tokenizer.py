"""A tokenizer learnt from texts: sentencepiece's pieces, and bytes for what they do not cover."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceTrainer

from data_pipelines.sentence_pieces import KIND
from jmm.errors import UserError

ROLES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""The first ids, in this order; 256 bytes follow behind the marks that are asked for."""

CLASSES = {"unigram": f"{KIND}Tokenizer", "bpe": "LlamaTokenizer"}
"""How tokenizer_config.json names the two."""

OPTIONS = {
    **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_fallback": True, "split_digits": True},
    # Texts come back as they were: nothing is made canonical, and no space is dropped.
    **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    # Otherwise longer texts are skipped in silence.
    "max_sentence_length": 1 << 30,
    # Sums of floats depend on it, so it is not that of the machine.
    "num_threads": 4,
    "minloglevel": 2,
}

FEWEST, MOST = r"smaller than required_chars\. \d+ vs (\d+)", r"to a value <= (\d+)"
"""What sentencepiece says of a size that is too small or too large."""


def train(
    texts: Iterable[str],
    path: Path,
    vocab_size: int,
    kind: Literal["unigram", "bpe"] = "unigram",
    marks: Sequence[str] = (),
    coverage: float = 0.9995,
) -> None:
    """Writes a new folder that `PretrainedTokenizer` reads: tokenizer.model and tokenizer_config.json, of exactly
    `vocab_size` tokens. The same texts in the same order give the same bytes, and any text that has no ▁ (U+2581, how
    sentencepiece writes a space) comes back from its ids, in LLaMA's layout without one space before it, and without
    the names of its roles. All texts are held in memory.

    Args:
      texts: what is learnt from, one or many lines each.
      path: the folder; there may be none with files in it.
      vocab_size: 4 tokens with a role, `marks`, 256 bytes, and the characters and pieces that are learnt.
      kind: pieces of a unigram model (Kudo 2018), or byte-pair encoding (Sennrich et al. 2016) in LLaMA's layout, which
        transformers reads as well.
      marks: tokens that are found in a text before anything else, ids 4 and up: sentinels, a mask, names of tasks.
      coverage: the share of the texts' characters that have a token of their own; the rarest are spelled in bytes.

    Raises:
      UserError: no texts, a size that they do not allow, a mark that cannot be one, or a folder that is not new.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already; another tokenizer needs a new folder")
    if not 0 < coverage <= 1:
        raise UserError(f"the share of characters with a token of their own must lie between 0 and 1, not {coverage}")
    taken = {"", *ROLES.values(), *(f"<0x{byte:02X}>" for byte in range(256))}
    if len({*marks, *taken}) < len(marks) + len(taken):
        raise UserError(
            f"marks must differ from each other and from {', '.join(ROLES.values())} and bytes: {list(marks)}"
        )
    # A sentence is UTF-8: half a surrogate pair is a question mark, as it is when a text is encoded.
    lines = [text.encode(errors="replace").decode() for text in texts if text]
    if not lines:
        raise UserError("there is no text to learn a tokenizer from")
    options = {**OPTIONS, "model_type": kind, "user_defined_symbols": list(marks), "character_coverage": coverage}
    model = _model(lines, vocab_size, options)
    settings = {
        "tokenizer_class": CLASSES[kind],
        "add_bos_token": True,
        "add_eos_token": True,
        "legacy": False,
        **ROLES,
    }
    _write(path, {"tokenizer.model": model, "tokenizer_config.json": json.dumps(settings, indent=2).encode()})


def _model(lines: list[str], vocab_size: int, options: dict[str, Any]) -> bytes:
    """The file that sentencepiece makes of texts."""
    if vocab_size <= len(ROLES):
        raise UserError(
            f"a vocabulary needs at least {_fewest(lines, options)} tokens for these texts, not {vocab_size}"
        )
    try:
        return _trained(lines, vocab_size, options)
    except RuntimeError as error:
        if found := re.search(FEWEST, str(error)):
            message = f"a vocabulary needs at least {found[1]} tokens for these texts, not {vocab_size}"
        elif found := re.search(MOST, str(error)):
            few = _fewest(lines, options)
            message = f"these texts allow a vocabulary of {few} to {found[1]} tokens, not {vocab_size}"
        else:
            message = f"no tokenizer can be learnt: {' '.join(str(error).split())}"
        raise UserError(message) from error


def _fewest(lines: list[str], options: dict[str, Any]) -> str:
    """The size of the smallest vocabulary. A size without room for bytes is refused before anything is learnt."""
    try:
        _trained(lines, len(ROLES), options)
    except RuntimeError as error:
        if found := re.search(FEWEST, str(error)):
            return found[1]
        raise
    raise AssertionError("no vocabulary of four tokens holds 256 bytes")


def _trained(lines: list[str], vocab_size: int, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, vocab_size=vocab_size, **options)
    return file.getvalue()


def _write(path: Path, files: dict[str, bytes]) -> None:
    """A folder of files, all of them or none: it gets its name when they are written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        for name, data in files.items():
            (beside / name).write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
