"""What turns strings into ids, and one that needs no file: the bytes of the text are its tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jmm.errors import UserError

PAD, BEGIN, END = 0, 1, 2
FIRST_BYTE = 3


class Tokenizer(ABC):
    """A frozen dataclass that describes a tokenizer completely. (No protocol: to check one, Python 3.11 computes its
    properties, and with them reads files.)"""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """What stands behind a text that is shorter than its batch."""

    @property
    @abstractmethod
    def end_id(self) -> int | None:
        """The mark at the end of a text, where there is one."""

    @abstractmethod
    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, marks of begin and end included; of a longer text the end is cut off, not the marks."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without marks and padding."""


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 3–258, between marks of begin (1) and end (2); 0 is padding (like ByT5, Xue et al. 2022)."""

    vocab_size: ClassVar[int] = FIRST_BYTE + 256
    pad_id: ClassVar[int] = PAD
    end_id: ClassVar[int] = END

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, marks included; a longer text is cut at the end of a character, and what is no
        Unicode (half a surrogate pair) becomes a question mark.

        Raises:
          UserError: no room for the two marks.
        """
        if length < 2:
            raise UserError(f"a text needs a length of at least 2 for its marks of begin and end, not {length}")
        data = text.encode(errors="replace")[: length - 2].decode(errors="ignore").encode()
        return [BEGIN, *(byte + FIRST_BYTE for byte in data), END]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without marks and padding; bytes that are no UTF-8 become U+FFFD."""
        return bytes(i - FIRST_BYTE for i in ids if i >= FIRST_BYTE).decode(errors="replace")
