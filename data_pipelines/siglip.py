"""SigLIP's texts (Zhai et al. 2023): lower case without punctuation, cut into sentencepiece's pieces."""

import re
import string
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from data_pipelines.settings import Settings
from data_pipelines.vocabulary import SPACE

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SiglipPieces:
    """The pieces of spiece.model, with a mark at the end of a text."""

    processor: SentencePieceProcessor
    lower: bool
    end: str
    unknown: str
    pad: str

    @classmethod
    def read(cls, path: Path, settings: Settings) -> "SiglipPieces":
        """The pieces of a file; raises what sentencepiece does where it is none."""
        processor = SentencePieceProcessor(model_file=str(path))
        usual = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        roles = {**usual, **{name: token["content"] for name, token in settings.special.items()}}
        lower = settings.flag("do_lower_case", True)
        return cls(processor, lower, roles["eos_token"], roles["unk_token"], roles["pad_token"])

    @property
    def size(self) -> int:
        """Number of pieces."""
        return self.processor.get_piece_size()

    @property
    def pad_id(self) -> int:
        """Of published checkpoints, that of the mark of the end."""
        return self.processor.piece_to_id(self.pad)

    @property
    def end_id(self) -> int:
        """The id of the mark of the end."""
        return self.processor.piece_to_id(self.end)

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, the mark of the end among them."""
        ids = self._ids(text)[: length - 1]
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without marks and padding."""
        marks = {self.end_id, self.pad_id, self.processor.unk_id()}
        return self.processor.decode([i for i in ids if i not in marks and 0 <= i < self.size]).strip()

    def _ids(self, text: str) -> list[int]:
        """Marks that are written out in the text are found first; what stands between them is made canonical."""
        marks = {self.end, self.unknown, self.pad}
        found: list[str] = []
        for part in re.split("|".join(f"({re.escape(mark)})" for mark in marks), SPACE + text.replace(SPACE, " ")):
            if part:
                found += [part] if part in marks else self._pieces(part)
        if len(found) > 1 and found[0] == SPACE and found[1] in marks:
            found = found[1:]
        return [self.processor.piece_to_id(piece) for piece in found]

    def _pieces(self, text: str) -> list[str]:
        # sentencepiece strips a space at the beginning, so the text is put behind something that is taken off again.
        guard = self.unknown
        pieces = self.processor.encode(guard + self.canonical(text), out_type=str)
        return pieces[len(self.processor.encode(guard, out_type=str)) :]

    def canonical(self, text: str) -> str:
        """Lower case, no punctuation, single spaces (big_vision's `canonicalize_text`)."""
        plain = (text.lower() if self.lower else text).translate(PUNCTUATION)
        return re.sub(r"\s+", " ", plain).strip()
