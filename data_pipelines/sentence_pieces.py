"""A sentencepiece model as it is, read by the library that made it: the folders that `train_tokenizer` writes."""

from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from data_pipelines.settings import Settings

KIND = "SentencePiece"
"""The name of the family in tokenizer_config.json."""


@dataclass(frozen=True)
class SentencePieces:
    """The pieces of tokenizer.model, between marks of begin and end."""

    processor: SentencePieceProcessor
    begin: tuple[int, ...]
    """The mark before every text, if there is one,"""
    end: tuple[int, ...]
    """and that behind it."""

    @classmethod
    def read(cls, path: Path, settings: Settings, marks: bool = True) -> "SentencePieces":
        """The pieces of a file, without its `marks` if so said; raises what sentencepiece does where it is none."""
        processor = SentencePieceProcessor(model_file=str(path))
        begin = marks and settings.flag("add_bos_token", True) and processor.bos_id() >= 0
        end = marks and settings.flag("add_eos_token", True) and processor.eos_id() >= 0
        return cls(processor, (processor.bos_id(),) * begin, (processor.eos_id(),) * end)

    @property
    def marks(self) -> int:
        """Marks that every text bears."""
        return len(self.begin) + len(self.end)

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, marks included."""
        return [*self.begin, *self.processor.encode(text)[: length - self.marks], *self.end]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without marks and padding."""
        pieces = self.processor
        return pieces.decode([i for i in ids if 0 <= i < pieces.get_piece_size() and not pieces.is_control(i)])
