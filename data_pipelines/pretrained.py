"""The tokenizer that lies beside a checkpoint's weights, as transformers' AutoTokenizer reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import tokenizers

from data_pipelines.sentence_pieces import KIND, SentencePieces
from data_pipelines.settings import Settings, read_settings
from data_pipelines.siglip import SiglipPieces
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.vocabulary import RECIPES, Roles, build
from jmm.errors import UserError

JSON = "tokenizer.json"

VOCABULARY_FILES = (JSON, "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""A tokenizer has one of them."""

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
"""All that makes a tokenizer in transformers' layout."""


@dataclass(frozen=True)
class PretrainedTokenizer(Tokenizer):
    """tokenizer.json, or else the vocabulary files of a family; they are read when the first text comes. Nothing of
    the directory is ever run.

    Every method and property raises UserError where the directory holds no tokenizer, or one that cannot be read.
    """

    directory: str
    """A checkpoint in transformers' layout."""
    marks: bool = True
    """Whether a text bears the checkpoint's own marks; if not, they are written out where they belong (PaliGemma)."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._loaded.vocab_size

    @property
    def pad_id(self) -> int:
        """The id of the padding token; of a tokenizer without one, what config.json says, or 0."""
        return self._loaded.pad_id

    @property
    def end_id(self) -> int | None:
        """The id of the token that ends a text; of BERT, that which separates two."""
        return self._loaded.end_id

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids with the checkpoint's own marks, which a cut text keeps. What is no Unicode (half a
        surrogate pair) becomes a question mark.

        Raises:
          UserError: no room for the marks.
        """
        loaded = self._loaded
        if length < loaded.marks:
            raise UserError(f"a text of {self.directory} needs a length of at least {loaded.marks}, not {length}")
        return loaded.pieces.encode(text.encode(errors="replace").decode(), length)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without marks and padding."""
        return self._loaded.pieces.decode(list(ids))

    @property
    def _loaded(self) -> "Loaded":
        return _load(self.directory, self.marks)


@runtime_checkable
class Pieces(Protocol):
    """What a tokenizer's files become."""

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, marks included."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without marks and padding."""
        ...


@dataclass(frozen=True)
class Loaded:
    """The files of one directory, read."""

    pieces: Pieces
    vocab_size: int
    pad_id: int
    end_id: int | None
    marks: int
    """Marks that every text bears."""


@dataclass(frozen=True)
class JsonPieces:
    """A `tokenizers.Tokenizer`, never changed: many threads read it."""

    tokenizer: tokenizers.Tokenizer
    cut: str
    """The side on which a long text is cut."""

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, marks included."""
        words = self.tokenizer.encode(text, add_special_tokens=False)
        words.truncate(length - self.tokenizer.num_special_tokens_to_add(False), direction=self.cut)
        return self.tokenizer.post_process(words).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without marks and padding."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        end_of_word = getattr(self.tokenizer.model, "end_of_word_suffix", None)  # CLIP's: no decoder undoes it
        return text.replace(end_of_word, " ").strip() if end_of_word else text


@lru_cache(maxsize=16)
def _load(directory: str, marks: bool) -> Loaded:
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint directory {directory}")
    settings = read_settings(folder)
    try:
        if settings.kind == "Siglip" and (folder / "spiece.model").is_file():
            return _siglip(folder, settings)
        if settings.kind == KIND and (folder / "tokenizer.model").is_file():
            return _sentence_pieces(folder, settings, marks)
        tokenizer, roles = _read(folder, settings)
        if not marks:
            tokenizer.post_processor = None
        return _json(settings, tokenizer, roles)
    except UserError:
        raise
    except BaseException as error:  # the libraries raise kinds of their own, a panic of Rust's among them
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"the tokenizer of {directory} cannot be read: {' '.join(str(error).split())}") from error


def _read(folder: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    recipe = RECIPES.get(settings.kind)
    if (folder / JSON).is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / JSON))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        usual = recipe.roles if recipe else {}
        known = {name: token for name, token in usual.items() if _id(tokenizer, token) is not None}
        return tokenizer, {**known, **{name: token["content"] for name, token in settings.special.items()}}
    if recipe and all((folder / name).is_file() for name in recipe.files):
        return build(recipe, folder, settings)
    alone = {"Siglip": "spiece.model", KIND: "tokenizer.model"}
    files = " with ".join(recipe.files) if recipe else alone.get(settings.kind, "")
    raise UserError(f"{folder} holds no tokenizer: no {JSON}" + (f", and no {files}" if files else ""))


def _json(settings: Settings, tokenizer: tokenizers.Tokenizer, roles: Roles) -> Loaded:
    cut = settings.values.get("truncation_side", "right")
    pieces = JsonPieces(tokenizer, cut if cut in ("left", "right") else "right")
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    end = _id(tokenizer, roles.get("eos_token") or roles.get("sep_token"))
    marks = tokenizer.num_special_tokens_to_add(False)
    return Loaded(pieces, size, _pad_id(settings, _id(tokenizer, roles.get("pad_token"))), end, marks)


def _siglip(folder: Path, settings: Settings) -> Loaded:
    pieces = SiglipPieces.read(folder / "spiece.model", settings)
    return Loaded(pieces, pieces.size, _pad_id(settings, pieces.pad_id), pieces.end_id, 1)


def _sentence_pieces(folder: Path, settings: Settings, marks: bool) -> Loaded:
    pieces = SentencePieces.read(folder / "tokenizer.model", settings, marks)
    file = pieces.processor
    end = file.eos_id() if file.eos_id() >= 0 else None
    return Loaded(pieces, file.get_piece_size(), _pad_id(settings, file.pad_id()), end, pieces.marks)


def _id(tokenizer: tokenizers.Tokenizer, token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _pad_id(settings: Settings, pad: int | None) -> int:
    """Padding is looked up like any token, so it must be one that the model has: many language models got theirs after
    they were trained."""
    size = settings.config.get("vocab_size")
    choices = [pad, settings.config.get("pad_token_id")]
    fit = [i for i in choices if isinstance(i, int) and 0 <= i < (size if isinstance(size, int) else i + 1)]
    return fit[0] if fit else 0
