"""Texts as pictures of themselves, for models that read pixels (PIXEL: Rust et al. 2023, section 2.1)."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image, ImageDraw, ImageFont

from jmm.errors import UserError

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""The one that comes with matplotlib: Latin, Greek, Cyrillic, Arabic and Hebrew letters, and many signs."""

WHITE, BLACK = 255, 0


@dataclass(frozen=True, eq=False)
class Strip:
    """A text on a strip of square patches."""

    pixels: Shaped[np.ndarray, "P W 3"]
    """uint8 [P, N · P, 3]: black letters on white, then one black patch, the mark of the end, then white."""
    text_patches: int
    """Those that bear text."""

    @property
    def mask(self) -> Bool[np.ndarray, "N"]:
        """True for what a model reads: the patches of the text and the mark of the end."""
        return np.arange(self.pixels.shape[1] // self.pixels.shape[0]) <= self.text_patches


def render(text: str, patches: int = 529, side: int = 16, font: Path | None = None) -> Strip:
    """A text in one line on `patches` patches of `side` × `side` pixels, in the largest size of a font whose lines
    are no higher than that; what the font lacks is the sign that it has for it. White space, line ends among it, is one
    space. Of a text that is too long the end is cut off, not the mark of the end.

    Raises:
      UserError: no patch for text and mark, too low for letters, or a font that cannot be read.
    """
    if patches < 1 or side < 4:
        raise UserError(f"a text needs at least 1 patch of 4 pixels, not {patches} of {side}")
    # A letter is a pixel wide at least: of a text that is longer than its strip by far only the beginning is measured.
    line = " ".join(text.encode(errors="replace").decode().split())[: patches * side]
    letters = _letters(str(font or FONT), side)
    ascent, descent = letters.getmetrics()
    left, _, right, _ = letters.getbbox(line, anchor="ls") if line else (0, 0, 0, 0)
    used = min(ceil((right - left) / side), patches - 1)
    picture = Image.new("L", (patches * side, side), WHITE)
    pen = ImageDraw.Draw(picture)
    pen.text((-left, ascent + (side - ascent - descent) // 2), line, BLACK, letters, anchor="ls")
    # What does not fit is painted over.
    pen.rectangle((used * side, 0, patches * side, side), WHITE)
    pen.rectangle((used * side, 0, (used + 1) * side - 1, side), BLACK)
    return Strip(np.repeat(np.asarray(picture)[:, :, None], 3, axis=2), used)


@lru_cache(maxsize=16)
def _letters(font: str, side: int) -> ImageFont.FreeTypeFont:
    """The largest size of a font whose lines are at most `side` pixels high."""
    try:
        sizes = (ImageFont.truetype(font, size) for size in range(2 * side, 0, -1))
        return next(letters for letters in sizes if sum(letters.getmetrics()) <= side)
    except OSError as error:
        raise UserError(f"{font} is no font that can be read: {error}") from error
    except StopIteration:
        raise UserError(f"{font} has no letters that are at most {side} pixels high") from None
