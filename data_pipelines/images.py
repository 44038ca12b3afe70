"""Images: reading them from disk, and transforms in NumPy."""

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from data_pipelines.broken import Broken, Reason
from jmm.errors import UserError

try:
    import simplejpeg
except ImportError:  # the extra `fast`; Pillow gives the same pixels in more time
    simplejpeg = None

try:
    import cykooz_resizer
except ImportError:  # the same extra
    cykooz_resizer = None

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

Resize = Literal["crop", "squash", "none"]
"""How a picture is brought to a size, see `resize`."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters, in the order of their codes."""


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's orientation. Pillow's own `exif_transpose` also writes the EXIF anew, which
fails where another of its entries is damaged."""

PIXELS = 178_956_970
"""Height times width of the largest image that Pillow opens (it warns above half of it): some 0.5 GB as RGB."""


def read_image(path: Path, pixels: int = PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """An image file as `decode_image` decodes it.

    Raises:
      UserError: naming the file, if it is missing; Broken: it is no readable image, or larger than `pixels`.
    """
    try:
        return _decode(path.read_bytes(), pixels)
    except FileNotFoundError:
        raise UserError(f"there is no image {path}") from None
    except MemoryError:
        raise
    except Exception as error:  # see `decode_image`
        raise _broken(str(path), "is", error) from error


def decode_image(data: bytes, pixels: int = PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """An image file's bytes as RGB, turned as its camera says, transparent parts on white.

    `pixels` is the most that height times width may be; it is compared with the header, before anything is decoded,
    for a file of some kilobytes may unpack to terabytes. Pillow opens none above `PIXELS`, whatever is allowed here.

    Raises:
      Broken: the bytes are no readable image, or one larger than `pixels`.
    """
    try:
        return _decode(data, pixels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's formats raise whatever comes first: struct.error, NotImplementedError, ...
        raise _broken(f"{len(data)} bytes", "are", error) from error


class TooLarge(ValueError):
    """An image of more pixels than are allowed."""


def _broken(what: str, be: str, error: Exception) -> Broken:
    reason: Reason = "pixels" if isinstance(error, TooLarge) else "image"
    if isinstance(error, UnidentifiedImageError):  # its own words name an address in memory
        error = ValueError("in no known format")
    return Broken(reason, f"{what} {be} not a readable image ({error}); replace it or take it out")


def _decode(data: bytes, pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """`decode_image`; what is wrong with the bytes is an error of Python's or Pillow's."""
    too_large = TooLarge(f"it has more than {min(pixels, PIXELS):,} pixels")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise too_large from None
    with image:
        if image.height * image.width > pixels:
            raise too_large
        if (plain := _plain_jpeg(image, data)) is not None:
            return plain
        image.load()  # which turns those of some formats
        turn = TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith("I"):  # 16 bits of grey: converting would cut, not scale
            grey = np.asarray(upright)
            if grey.min() < 0 or grey.max() > 0xFFFF:
                raise ValueError("its pixels are numbers of 32 bits of no known range")
            return to_channels((grey >> 8).astype(np.uint8)[:, :, None], 3)
        if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA"):
            upright = upright.convert("RGBA")
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright)
        if upright.mode == "F":
            raise ValueError("its pixels are floats of no known range")
        return np.asarray(upright.convert("RGB"))


def _plain_jpeg(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """An upright JPEG in colour or grey through simplejpeg; None where that is not installed, or it is none such."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if _orientation(image) in TURNS:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # it is damaged: Pillow decides whether it is still a picture
        return None


def _orientation(image: Image.Image) -> Any:
    """What EXIF says of it, which may be anything."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of a damaged note, which may raise whatever comes first
        return None
    return found if isinstance(found, int | float) else None


def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by path.

    Raises:
      UserError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def resize(
    image: UInt8[np.ndarray, "h w C"], size: tuple[int, int], how: Resize | int, resample: Resample = "bicubic"
) -> UInt8[np.ndarray, "H W C"]:
    """Resamples to `size` (height, width), filtered where it shrinks.

    `crop` keeps the proportions and cuts the middle out, as CLIP does; `squash` keeps the whole picture, as
    SigLIP does. A number is the same as `crop` in two steps of whole pixels, as transformers' processors go: the
    shorter edge is brought to that length, then the middle is cut out, with black around it where it is too small.
    `none` goes the second step alone.
    """
    if how == "none":
        return _middle(image, size)
    if how == "squash":
        return _resample(image, size, resample)
    height, width = image.shape[:2]
    if how == "crop":
        ratio = min(height / size[0], width / size[1])
        # max: rounding may leave a cut of −1e-15
        across, down = max(width - size[1] * ratio, 0) / 2, max(height - size[0] * ratio, 0) / 2
        return _resample(image, size, resample, (across, down, width - across, height - down))
    longer = int(how * max(height, width) / min(height, width))
    if how * longer > PIXELS:
        # So thin that all of it would take gigabytes: its middle, and somewhat more than is kept.
        keep = min(height, width) * (max(size) // how + 3)
        return resize(_middle(image, (min(height, keep), min(width, keep))), size, how, resample)
    scaled = (longer, how) if width <= height else (how, longer)
    return _middle(_resample(image, scaled, resample), size)


def _resample(
    image: UInt8[np.ndarray, "h w C"],
    size: tuple[int, int],
    resample: Resample,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "H W C"]:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    code = Image.Resampling[resample.upper()]
    return np.asarray(picture.resize((size[1], size[0]), code, box=box)).reshape(*size, -1)


Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image."""


def squash_box(image: UInt8[np.ndarray, "h w C"], box: Box, size: tuple[int, int]) -> UInt8[np.ndarray, "H W C"]:
    """A part of a training image brought to `size` (height, width), bicubic.

    With the extra `fast` in a fifth of the time, and 99% and more of the levels are those that `resize` gives, which
    evaluation and users' own pictures always go through; others are one off, and one in a hundred thousand two.
    """
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    if cykooz_resizer is None or image.shape[2] not in (1, 3):
        return resize(np.ascontiguousarray(part), size, "squash")
    kind = cykooz_resizer.PixelType.U8 if image.shape[2] == 1 else cykooz_resizer.PixelType.U8x3
    bicubic = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    options, resizer = cykooz_resizer.ResizeOptions(bicubic), cykooz_resizer.Resizer()
    # One direction at a time, in Pillow's order: what overshoots is cut off, and rounded, where Pillow does so.
    between = (size[0], width) if _down_first((height, width), size) else (height, size[1])
    large = cykooz_resizer.ImageData(width, height, kind, part.tobytes())
    for rows, columns in (between, size):
        small = cykooz_resizer.ImageData(columns, rows, kind)
        resizer.resize(large, small, options)
        large = small
    return np.frombuffer(large.get_buffer(), np.uint8).reshape(*size, -1)


ACROSS_FIRST = int(PIL.__version__.split(".")[0]) < 13
"""Whether Pillow always brings the width to size before the height, as it did before its version 13."""


def _down_first(have: tuple[int, int], want: tuple[int, int]) -> bool:
    """Whether Pillow brings the height to size before the width: it shrinks, and by more than twice as many pixels."""
    rows, columns = (old - new for old, new in zip(have, want, strict=True))
    return not ACROSS_FIRST and rows > max(0, 2 * columns)


def _middle(image: UInt8[np.ndarray, "h w C"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W C"]:
    """Cut out or put on black; where a border cannot be halved, a cut takes less, black more, above and on the left."""
    cut, pad = [], []
    for have, want in zip(image.shape[:2], size, strict=True):
        start = max(have - want, 0) // 2
        cut.append(slice(start, start + min(have, want)))
        before = (max(want - have, 0) + 1) // 2
        pad.append((before, max(want - have, 0) - before))
    return np.pad(image[tuple(cut)], (*pad, (0, 0)))


def to_channels(image: UInt8[np.ndarray, "H W c"], channels: int) -> UInt8[np.ndarray, "H W C"]:
    """RGB from grey by repetition, grey from RGB by luma (ITU-R 601)."""
    if image.shape[2] == channels:
        return image
    if channels == 1:
        return np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[:, :, None]
    return np.repeat(image, channels, axis=2)


def affine(
    image: Shaped[np.ndarray, "H W C"], angle: float, scale: float, shift: tuple[float, float]
) -> Float[np.ndarray, "H W C"]:
    """Turns by `angle` (degrees), scales and shifts (fractions of height and width) about the middle.

    Bilinear; what comes from outside the picture repeats its border.
    """
    height, width, channels = image.shape
    y, x = _centred(height, width)
    y, x = y - np.float32(shift[0] * height), x - np.float32(shift[1] * width)
    turn, zoom = math.radians(angle), 1 / scale
    sin, cos = np.float32(math.sin(turn) * zoom), np.float32(math.cos(turn) * zoom)
    from_y = (cos * y - sin * x + np.float32((height - 1) / 2)).clip(0, height - 1)
    from_x = (sin * y + cos * x + np.float32((width - 1) / 2)).clip(0, width - 1)
    # Cut so that there is a next row and column; at the far border their weight is 1.
    top = np.minimum(from_y.astype(np.int32), max(height - 2, 0))
    left = np.minimum(from_x.astype(np.int32), max(width - 2, 0))
    down, across = (from_y - top)[:, None], (from_x - left)[:, None]
    below, beside = width * (height > 1), int(width > 1)
    corners = top * width + left + np.array([[0], [beside], [below], [below + beside]], np.int32)
    upper_left, upper_right, lower_left, lower_right = image.reshape(-1, channels).astype(np.float32)[corners]
    upper = upper_left + (upper_right - upper_left) * across
    lower = lower_left + (lower_right - lower_left) * across
    return (upper + (lower - upper) * down).reshape(height, width, channels)


@lru_cache(maxsize=8)
def _centred(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of all pixels from the middle of the image, flat."""
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    return y - np.float32((height - 1) / 2), x - np.float32((width - 1) / 2)
