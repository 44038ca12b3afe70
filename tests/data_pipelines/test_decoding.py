"""Reading pictures of every kind."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, ImageOps

from data_pipelines import images
from data_pipelines.broken import Broken
from data_pipelines.images import PIXELS, decode_image, list_images, read_image
from jmm.errors import UserError
from tests.data_pipelines.test_images import PHOTO, RANDOM

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def saved(image, kind="JPEG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def test_png_is_exact(tmp_path):
    Image.fromarray(RANDOM).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RANDOM)


def test_jpeg_is_close(tmp_path):
    Image.fromarray(RED).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").astype(int), RED, atol=3)


@pytest.mark.parametrize(("mode", "expected"), [("P", (255, 0, 0)), ("L", (76, 76, 76)), ("1", (0, 0, 0))])
def test_modes_become_rgb(tmp_path, mode, expected):
    image = Image.fromarray(RED).convert(mode, **({"dither": Image.Dither.NONE} if mode == "1" else {}))
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == expected).all()


def test_transparent_parts_lie_on_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(
        read_image(tmp_path / "a.png").astype(int), [[[255] * 3, [255, 0, 0], [127] * 3]], atol=1
    )


def test_transparent_palette_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L").convert("P")
    image.putpalette([10, 20, 30, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 255, 255], [0, 0, 255]]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_shades(tmp_path, suffix):
    Image.fromarray(np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")[0, :, 0].astype(int)
    np.testing.assert_allclose(found, [0, 64, 128, 255], atol=1)


def test_a_camera_held_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter to look right
    Image.fromarray(RANDOM).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RANDOM, -1))


def truncated_jpeg(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


def bomb(path):
    """A PNG header that promises 40,000 × 40,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    "damage",
    [
        truncated_jpeg,
        bomb,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("I am a letter"),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
    ids=["truncated", "bomb", "empty", "text", "folder", "missing"],
)
def test_what_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "holiday.png"
    damage(path)
    with pytest.raises(UserError, match=r"holiday\.png"):
        read_image(path)


def test_list_images_goes_below_and_sorts(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "album.png").mkdir()
    for name in ("b/2.JPG", "z.png", "a.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / name for name in ("a.webp", "b/2.JPG", "z.png")]


@pytest.mark.parametrize("folder", ["", "missing"])
def test_list_images_without_any(tmp_path, folder):
    with pytest.raises(UserError, match=str(tmp_path / folder)):
        list_images(tmp_path / folder)


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """With the extra `fast`, and without it."""
    if request.param == "Pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    return request.param


JPEGS = {
    "coarse colors": ("RGB", {"subsampling": 2, "quality": 40}),
    "half colors": ("RGB", {"subsampling": 1}),
    "full colors": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 2}),
    "RGB kept": ("RGB", {"keep_rgb": True}),
    "gray": ("L", {}),
    "progressive gray": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}


@pytest.mark.parametrize(("mode", "how"), JPEGS.values(), ids=JPEGS)
def test_jpegs_are_pillows_to_the_bit(decoder, mode, how):
    data = saved(PHOTO.convert(mode), **how)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)
    # Bytes behind the picture, as cameras leave them, are none of it.
    np.testing.assert_array_equal(decode_image(data + b"\0" * 100), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned_as_the_camera_says(decoder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(saved(PHOTO))
    mirrored = upright[:, ::-1] if orientation in (2, 4, 5, 7) else upright
    quarters = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}[orientation]
    np.testing.assert_array_equal(decode_image(saved(PHOTO, exif=exif)), np.rot90(mirrored, quarters))


def test_plain_jpegs_go_through_simplejpeg(monkeypatch):
    seen = []

    class Spy:
        def decode_jpeg(self, data, colors):
            seen.append(data)
            return simplejpeg.decode_jpeg(data, colors)

    monkeypatch.setattr(images, "simplejpeg", Spy())
    exif = Image.Exif()
    exif[0x0112] = 3
    plain = [saved(PHOTO), saved(PHOTO.convert("L"))]
    for data in (*plain, saved(PHOTO.convert("CMYK")), saved(PHOTO, exif=exif), saved(PHOTO, "PNG")):
        decode_image(data)
    assert seen == plain


def test_a_damaged_jpeg_is_left_to_pillow(decoder):
    """Junk before a restart marker: simplejpeg's strictness would refuse what Pillow, with a warning, reads."""
    data = bytearray(saved(PHOTO, restart_marker_blocks=2))
    place = data.index(b"\xff\xd1")
    data[place:place] = b"\x12\x34\x56"
    with Image.open(io.BytesIO(bytes(data))) as image:
        expected = np.asarray(image)
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(bytes(data))
    np.testing.assert_array_equal(decode_image(bytes(data)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch, decoder, kind):
    data = saved(PHOTO, kind)
    assert decode_image(data, pixels=61 * 83).shape == (61, 83, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(images, "_plain_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=rf"^{len(data)} bytes are not .* \(it has more than 5,062 pixels\); replace"):
        decode_image(data, pixels=61 * 83 - 1)
    (tmp_path / "wide").write_bytes(data)
    with pytest.raises(UserError, match=r"wide is not a readable image \(it has more than 5,062 pixels\); replace"):
        read_image(tmp_path / "wide", pixels=61 * 83 - 1)


def test_no_limit_is_above_pillows(tmp_path):
    bomb(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"it has more than 178,956,970 pixels"):
        decode_image((tmp_path / "bomb.png").read_bytes(), pixels=10**12)
    assert PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("length", [0, 1, 2, 100, 700])
def test_cut_off_bytes_get_one_sentence(decoder, length):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=rf"^{length} bytes are not a readable image \("):
        decode_image(saved(Image.fromarray(noise))[:length])


def test_a_damaged_note_of_the_camera_is_no_reason(decoder):
    """Orientation as a float, which Pillow reads and cannot write, and another entry that is cut off."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(PHOTO, exif=exif)
    place = data.index(b"\x01\x12\x00\x03")
    damaged = data[: place + 2] + struct.pack(">HIf", 11, 1, 6.0) + data[place + 12 - 2 + 2 :]
    np.testing.assert_array_equal(decode_image(damaged), decode_image(data))


@pytest.mark.parametrize("error", [RuntimeError("no frame"), NotImplementedError("flags"), struct.error("short")])
def test_whatever_a_decoder_raises_is_a_broken_image(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(images, "_decode", fails)
    with pytest.raises(Broken, match=f"are not a readable image \\({error}\\)"):
        decode_image(b"x")


def test_deep_greys():
    for kind, value, level in ((np.uint16, 0x8000, 0x80), (np.int32, 0x1234, 0x12)):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 5), value, kind)).save(file, "TIFF")
        assert (decode_image(file.getvalue()) == level).all()
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), 0x8000, np.uint16)).save(file, "PNG", transparency=7)
    assert (decode_image(file.getvalue()) == 0x80).all()
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), 70_000, np.int32)).save(file, "TIFF")
    with pytest.raises(Broken, match="32 bits of no known range"):
        decode_image(file.getvalue())


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_other_formats_are_turned_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(RANDOM).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_image(file.getvalue()), expected)


def test_a_note_that_is_none():
    file = io.BytesIO()
    Image.fromarray(RANDOM).save(file, "PNG", exif=b"Exif\0\0no such thing")
    np.testing.assert_array_equal(decode_image(file.getvalue()), RANDOM)
