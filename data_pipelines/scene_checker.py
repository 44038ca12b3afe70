"""What a picture of a scene shows, found without a model, and whether an English caption is true of it.

Every shape of every size and material is laid over every place (matched filters, by Fourier transform); the one that
explains most of what differs from the background is an object, it is taken away, and the search begins anew. Pictures
may be blurred or drawn by a model: an object counts where it explains half of what a perfect one would.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Complex, Float, UInt8

from data_pipelines.scene_drawing import RGB, stamp
from data_pipelines.scene_grammar import PLACES
from data_pipelines.scene_world import COLOURS, MATERIALS, RADII, SHAPES, SIZES, Thing, relation

EXPLAINED = 0.5
"""Share of its own energy that an object must explain."""

MOST = 8
"""Objects that are looked for."""

PALE = 200
"""Pixels of the background have no channel below this, and only few others have none."""

GROUND = 238
"""The middle of the background's values."""

PAINTS = np.array([RGB[colour] for colour in COLOURS], np.float32)

OBJECT = re.compile(
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) "
    rf"(?:(?P<material>{'|'.join(MATERIALS)}) )?(?P<shape>{'|'.join(SHAPES)})"
)
BETWEEN = re.compile("|".join(PLACES["en"]))


@dataclass(frozen=True)
class Said:
    """What an English caption says."""

    things: tuple[tuple[str, str, str | None, str], ...]
    """Size, colour, material and shape of each object; None where no material is said."""
    how: str | None
    """The relation of the first to the second."""


def said(caption: str) -> Said:
    """What is said of objects; all else, such as a printed word, is left out."""
    things = tuple((each["size"], each["colour"], each["material"], each["shape"]) for each in OBJECT.finditer(caption))
    between = BETWEEN.search(caption)
    return Said(things, between.group() if between and len(things) == 2 else None)


def true_of(caption: str, things: tuple[Thing, ...]) -> bool:
    """Whether a scene with these objects has all that the caption says, in that relation, and no other object. Of a
    caption that names no object nothing is true."""
    claim = said(caption)
    if not claim.things or len(things) != len(claim.things):
        return False
    if claim.how:
        orders = [things, things[::-1]]
        return any(
            all(map(_fits, claim.things, order)) and relation(order[0], order[1]) == claim.how for order in orders
        )
    with_material = any(material for _, _, material, _ in claim.things)
    seen = Counter((t.size, t.colour, t.material if with_material else None, t.shape) for t in things)
    return seen == Counter(claim.things)


def _fits(claim: tuple[str, str, str | None, str], thing: Thing) -> bool:
    size, colour, material, shape = claim
    return (thing.size, thing.colour, thing.shape) == (size, colour, shape) and material in (None, thing.material)


def see(image: UInt8[np.ndarray, "S S 3"]) -> tuple[Thing, ...]:
    """The objects of a picture, those that explain most of it first."""
    size = len(image)
    forms = templates(size)
    left = image.astype(np.float32) - _background(image)
    found: list[Thing] = []
    while len(found) < MOST:
        gains = _gains(left, forms)
        index, colour, y, x = map(int, np.unravel_index(np.argmax(gains), gains.shape))
        if gains[index, colour, y, x] < EXPLAINED * forms.energy[index, colour]:
            break
        form = forms.kinds[index]
        centre = (y + form.side / 2) / size, (x + form.side / 2) / size
        found.append(Thing(form.shape, COLOURS[colour], form.size, form.material, centre, form.radius, (0, 0, 0)))
        change = forms.own[index, ..., None] + forms.tint[index, ..., None] * PAINTS[colour]
        left[y : y + form.side, x : x + form.side] -= change[: form.side, : form.side]
    return tuple(found)


@dataclass(frozen=True)
class Form:
    """An object that can be drawn, but for its colour."""

    shape: str
    material: str
    size: str
    radius: float
    side: int
    """Pixels of its stamp."""


@dataclass(frozen=True)
class Templates:
    """What each form changes of a pale background: `own` + `tint` times its colour."""

    kinds: list[Form]
    own: Float[np.ndarray, "N S S"]
    """What is covered, and white light; the same in all channels."""
    tint: Float[np.ndarray, "N S S"]
    """The part that has the colour."""
    spectra: Complex[np.ndarray, "2 N S K"]
    """Transforms of both, conjugated."""
    energy: Float[np.ndarray, "N colours"]
    """Sums of squares of the changes."""


@lru_cache(maxsize=4)
def templates(size: int) -> Templates:
    """Of pictures of this size."""
    kinds: list[Form] = []
    own, tint = (np.zeros((sum(map(len, RADII.values())) * len(SHAPES) * len(MATERIALS), size, size)) for _ in "ab")
    for shape, material, name in product(SHAPES, MATERIALS, SIZES):
        for radius in RADII[name]:
            made = stamp(shape, material, radius, size)
            side = len(made.keep)
            own[len(kinds), :side, :side] = (made.keep[:, ::3] - 1) * GROUND + made.light[:, ::3]
            tint[len(kinds), :side, :side] = made.colour[:, ::3]
            kinds.append(Form(shape, material, name, radius, side))
    energy = 3 * np.square(own).sum((1, 2))[:, None] + 2 * (own * tint).sum((1, 2))[:, None] * PAINTS.sum(1)
    energy += np.square(tint).sum((1, 2))[:, None] * np.square(PAINTS).sum(1)
    spectra = np.conj(np.fft.rfft2(np.stack([own, tint]))).astype(np.complex64)
    return Templates(kinds, own.astype(np.float32), tint.astype(np.float32), spectra, energy.astype(np.float32))


def _gains(left: Float[np.ndarray, "S S 3"], forms: Templates) -> Float[np.ndarray, "N colours S S"]:
    """By how much the squared difference shrinks when a form's upper left corner is laid on each place; −∞ where it
    would leave the picture."""
    spectrum = np.fft.rfft2(np.moveaxis(left, -1, 0)).astype(np.complex64)
    own = np.fft.irfft2(forms.spectra[0] * spectrum.sum(0), left.shape[:2]).astype(np.float32)
    tint = np.fft.irfft2(forms.spectra[1][:, None] * spectrum, left.shape[:2]).astype(np.float32)
    matched = own[:, None] + np.einsum("nchw,kc->nkhw", tint, PAINTS, optimize=True)
    gains: Float[np.ndarray, "N colours S S"] = 2 * matched - forms.energy[:, :, None, None]
    for each, form in zip(gains, forms.kinds, strict=True):
        first = len(left) - form.side + 1
        each[:, first:] = each[:, :, first:] = -np.inf
    return gains


def _background(image: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, "S S 3"]:
    """The plane through the pale pixels of each channel; white where there are too few."""
    pale = image.min(axis=2) >= PALE
    if pale.sum() < image.shape[0]:
        return np.full(image.shape, 255.0)
    y, x = np.indices(pale.shape) / len(pale)
    design = np.stack([np.ones_like(x), y, x], axis=-1)
    fit, *_ = np.linalg.lstsq(design[pale], image[pale].astype(np.float64), rcond=None)
    plane: Float[np.ndarray, "S S 3"] = design @ fit
    return plane
