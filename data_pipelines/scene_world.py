"""What a scene can hold, which combinations training never sees, and scenes drawn from a seed.

Two objects of a scene are related only where it is plain to see: they stand side by side (`left of`) or one over the
other (`above`), far apart along one axis and nearly level along the other.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond")
COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "turquoise")
SIZES = ("small", "large")
MATERIALS = ("matte", "shiny", "striped")
OPPOSITES = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
RELATIONS = tuple(OPPOSITES)

CONSONANTS, VOWELS = "BDHLMNRSTVW", "AEIOU"

COUNTS = (2, 2, 2, 3, 3, 4)
"""A scene's number of objects is one of these."""

RADII = {"small": (0.085, 0.091, 0.097), "large": (0.140, 0.148, 0.155)}
"""Half an object's width, as a fraction of the picture's."""

APART, LEVEL = 0.25, 0.16
"""Related objects are at least so far apart along one axis, and at most so far along the other."""

JITTER, GAP = 0.07, 0.012
"""How far objects stand off their place at most, and their distance from its border."""

BAND = 0.2
"""Height of the part of a picture that a printed word has to itself."""

TINT = 13
"""Red, green and blue of an object differ by at most so much from its colour's."""

Box = tuple[float, float, float, float]
"""(y0, x0, y1, x1), fractions of the picture's height and width."""

Point = tuple[float, float]
"""(y, x), fractions of the picture's height and width."""

T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    colour: str
    size: str
    material: str
    centre: Point
    radius: float
    """Half its width, a fraction of the picture's."""
    tint: tuple[int, int, int]
    """What its colour differs by from the named one, in 0–255."""
    box: Box | None = None
    """Around its pixels, once it is drawn."""


@dataclass(frozen=True)
class Word:
    """A printed word."""

    text: str
    centre: Point
    box: Box | None = None
    """Around its pixels, once it is drawn."""


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (upper row first, each from the left), and a printed word or none."""

    things: tuple[Thing, ...]
    backdrop: int
    """Which of the pale backgrounds, any whole number."""
    word: Word | None = None


class Dice:
    """Whole numbers from a key, the same on all platforms and with all versions of NumPy: these fix the bits of PCG64
    and of SeedSequence, but not what distributions make of them (NEP 19)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._ready: list[int] = []

    def roll(self, sides: int) -> int:
        """0 … sides − 1, each as likely as the others but for one part in 2⁶⁴ / sides."""
        if not self._ready:
            self._ready = self._bits.random_raw(64).tolist()
        return self._ready.pop() % sides

    def choose(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.roll(len(options))]

    def between(self, low: float, high: float) -> float:
        """One of a thousand steps from low to high; their middle where low is the higher."""
        return low + (high - low) * self.roll(1001) / 1000 if low < high else (low + high) / 2

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of them in a random order."""
        left = list(options)
        return [left.pop(self.roll(len(left))) for _ in options]


def pair_kept_out(colour: str, shape: str) -> bool:
    """Whether training has no object of this colour and shape: 10 of the 56 pairs, one or two of each colour, and of
    each shape."""
    return (SHAPES.index(shape) - COLOURS.index(colour)) % 6 == 0


def relation_kept_out(first: str, relation: str, second: str) -> bool:
    """Whether training has no two objects of these shapes that stand so: of each relation 7 of the 49 pairs, each shape
    once first and once second. What holds for `left of` holds for `right of` with the shapes in the other order."""
    if relation in ("right of", "below"):
        first, second = second, first
    turn = 2 if relation in ("left of", "right of") else 4
    return (SHAPES.index(second) - SHAPES.index(first)) % len(SHAPES) == turn


def word_kept_out(word: str) -> bool:
    """Whether training never prints this word: about one in six, without regard to its letters."""
    return zlib.crc32(word.encode()) % 6 == 0


@cache
def lexicon(kept_out: bool) -> tuple[str, ...]:
    """Words of three or four letters that can be said, no letter twice: those that training prints, or the others."""
    patterns = ((CONSONANTS, VOWELS, CONSONANTS), (CONSONANTS, VOWELS, CONSONANTS, VOWELS))
    words = ["".join(letters) for pattern in patterns for letters in product(*pattern)]
    return tuple(word for word in words if len(set(word)) == len(word) and word_kept_out(word) == kept_out)


@cache
def pairs(kept_out_too: bool, shape: str | None = None) -> tuple[tuple[str, str], ...]:
    """(colour, shape) of objects that can be drawn, of one shape if it is given."""
    every = product(COLOURS, SHAPES if shape is None else (shape,))
    return tuple(pair for pair in every if kept_out_too or not pair_kept_out(*pair))


def relation(first: Thing, second: Thing) -> str | None:
    """How the first stands to the second; None where it is neither beside nor over or under it."""
    down, across = second.centre[0] - first.centre[0], second.centre[1] - first.centre[1]
    if abs(across) >= APART and abs(down) <= LEVEL:
        return "left of" if across > 0 else "right of"
    if abs(down) >= APART and abs(across) <= LEVEL:
        return "above" if down > 0 else "below"
    return None


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """(i, `left of` or `above`, j) of all objects that are related."""
    found = [(i, relation(a, b), j) for i, a in enumerate(scene.things) for j, b in enumerate(scene.things)]
    return [(i, how, j) for i, how, j in found if how in ("left of", "above")]


def kept_out(scene: Scene) -> bool:
    """Whether the scene holds a combination that training never sees."""
    things = scene.things
    return (
        any(pair_kept_out(thing.colour, thing.shape) for thing in things)
        or any(relation_kept_out(things[i].shape, how, things[j].shape) for i, how, j in relations(scene))
        or (scene.word is not None and word_kept_out(scene.word.text))
    )


def draw_scene(
    dice: Dice,
    *,
    held_out: bool,
    word: bool,
    counts: Sequence[int] = COUNTS,
    materials: Sequence[str] = MATERIALS,
) -> Scene:
    """A scene without kept-out combinations, or, held out, one with at least one among its objects; a word of a
    held-out scene is always one that training never prints. There are as many objects as one of `counts`, from 2 to 4,
    of these materials."""
    printed = _print(dice, held_out) if word else None
    top = BAND if printed and printed.centre[0] < 0.5 else 0.0
    cells = _cells(dice, dice.choose(counts), top, 1 - BAND if printed else 1.0)
    backdrop = dice.roll(1 << 16)
    while True:
        things = _things(dice, cells, held_out, materials)
        if kept_out(Scene(things, backdrop)) == held_out:
            return Scene(things, backdrop, printed)


def _print(dice: Dice, held_out: bool) -> Word:
    text = dice.choose(lexicon(held_out))
    width = 0.15 * len(text)
    upper = dice.roll(2)
    y = dice.between(BAND / 2 - 0.01, BAND / 2 + 0.01)
    return Word(text, (y if upper else 1 - y, dice.between(width / 2, 1 - width / 2)))


@dataclass(frozen=True)
class Cell:
    """Where one object may stand."""

    centre: Point
    reach: Point
    """From the centre to the border, down and across."""


def _cells(dice: Dice, count: int, top: float, height: float) -> list[Cell]:
    """Two side by side or one over the other, anywhere across; or three or four quarters; in reading order."""
    rows = [(top + height * part, height / 4) for part in (0.25, 0.75)]
    columns = [(part, 0.25) for part in (0.25, 0.75)]
    if count == 2 and dice.roll(2):
        rows = [_line(dice, top, height)]
    elif count == 2:
        columns = [_line(dice, 0.0, 1.0)]
    cells = [Cell((y, x), (down, across)) for y, down in rows for x, across in columns]
    if count == 3:
        cells.pop(dice.roll(4))
    return cells


def _line(dice: Dice, start: float, length: float) -> tuple[float, float]:
    """A place for a row or column, and how near the border is."""
    offset = dice.between(RADII["large"][-1] + GAP, length - RADII["large"][-1] - GAP)
    return start + offset, min(offset, length - offset)


def _things(dice: Dice, cells: Sequence[Cell], held_out: bool, materials: Sequence[str]) -> tuple[Thing, ...]:
    things: list[Thing] = []
    for cell in cells:
        # Shapes come again, or else two of a kind would be rare.
        again = things[dice.roll(len(things))].shape if things and dice.roll(4) == 0 else None
        things.append(_thing(dice, cell, *dice.choose(pairs(held_out, again)), materials))
    return tuple(things)


def _thing(dice: Dice, cell: Cell, colour: str, shape: str, materials: Sequence[str]) -> Thing:
    size = dice.choose(SIZES)
    radius = dice.choose(RADII[size])
    y, x = (
        middle + dice.between(-1.0, 1.0) * min(JITTER, reach - radius - GAP)
        for middle, reach in zip(cell.centre, cell.reach, strict=True)
    )
    red, green, blue = (dice.roll(2 * TINT + 1) - TINT for _ in range(3))
    return Thing(shape, colour, size, dice.choose(materials), (y, x), radius, (red, green, blue))
