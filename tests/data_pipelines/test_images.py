"""Reading pictures of every kind, and what each transform does to their pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from data_pipelines import images
from data_pipelines.broken import Broken
from data_pipelines.images import PIXELS, affine, decode_image, list_images, read_image, resize, squash_box, to_channels
from jmm.errors import UserError

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
RANDOM = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


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


def white_square(height, width, side):
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 255
    return image


def extent(image):
    """Rows and columns whose middle is bright."""
    middle = image[image.shape[0] // 2], image[:, image.shape[1] // 2]
    return int((middle[1] > 127).any(-1).sum()), int((middle[0] > 127).any(-1).sum())


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (20, 20)])
def test_crop_keeps_proportions(shape):
    small = resize(white_square(*shape, 8), (10, 10), "crop")
    assert small.shape == (10, 10, 3)
    assert extent(small) == (4, 4)
    np.testing.assert_array_equal(small, small[::-1, ::-1])


def test_crop_to_another_shape_keeps_proportions():
    assert extent(resize(white_square(40, 40, 16), (10, 20), "crop")) == (8, 8)


def test_squash_keeps_the_whole_picture():
    assert extent(resize(white_square(20, 40, 8), (10, 10), "squash")) == (4, 2)


def test_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize(RANDOM, (6, 8), "crop"), RANDOM)
    np.testing.assert_array_equal(resize(RANDOM[..., :1], (6, 8), "squash"), RANDOM[..., :1])


# side * (width / side) is a hair more than width here: the box would start left of the picture
@settings(deadline=None)
@example(450, 225, 49, 49)
@example(46, 23, 336, 336)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.integers(1, 64))
def test_crop_takes_any_size(height, width, rows, columns):
    image = np.full((height, width, 1), 7, np.uint8)
    assert (resize(image, (rows, columns), "crop") == np.full((rows, columns, 1), 7)).all()


def test_to_channels():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    np.testing.assert_array_equal(to_channels(colours, 1)[..., 0], [[76, 150, 29, 9]])
    grey = RANDOM[..., :1]
    np.testing.assert_array_equal(to_channels(grey, 3), np.concatenate([grey] * 3, axis=2))
    assert to_channels(RANDOM, 3) is RANDOM


def test_affine_identity_is_exact():
    np.testing.assert_array_equal(affine(RANDOM, 0.0, 1.0, (0.0, 0.0)), RANDOM)


@settings(deadline=None)
@given(st.integers(-7, 7), st.integers(-7, 7))
def test_affine_by_whole_pixels_is_exact(down, across):
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 2), dtype=np.uint8)
    rows, columns = np.clip(np.arange(8) - down, 0, 7), np.clip(np.arange(8) - across, 0, 7)
    np.testing.assert_array_equal(affine(image, 0.0, 1.0, (down / 8, across / 8)), image[rows][:, columns])


@pytest.mark.parametrize("size", [7, 8])
def test_affine_by_quarters_is_clockwise_rot90(size):
    image = RANDOM[:1].repeat(size, 0).repeat(2, 1)[:, :size] + np.arange(size, dtype=np.uint8)[:, None, None]
    for quarters in range(-3, 4):
        # float32 coordinates of at most 8 pixels are off by some 1e-6 of a pixel, times 255
        np.testing.assert_allclose(
            affine(image, 90.0 * quarters, 1.0, (0.0, 0.0)),
            np.rot90(image, -quarters).astype(np.float32),
            atol=2e-3,
        )


def test_affine_scale_above_one_enlarges():
    square = white_square(16, 16, 4)
    assert extent(affine(square, 0.0, 2.0, (0.0, 0.0))) == (8, 8)
    assert extent(affine(square, 0.0, 0.5, (0.0, 0.0))) == (2, 2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (5, 1, 1)])
def test_affine_of_a_thin_picture(shape):
    image = np.full(shape, 9, np.uint8)
    np.testing.assert_allclose(affine(image, 30.0, 1.3, (0.4, -0.2)), image, atol=1e-5)


RAMP = np.arange(60, dtype=np.uint8).reshape(5, 12, 1)


def test_the_shorter_edge_then_the_middle():
    by_hand = np.asarray(Image.fromarray(RAMP[..., 0]).resize((24, 10), Image.Resampling.BILINEAR))
    found = resize(RAMP, (8, 7), 10, "bilinear")
    np.testing.assert_array_equal(found[..., 0], by_hand[1:9, 8:15])


def test_the_longer_edge_is_rounded_down():
    assert resize(RAMP[:, :, :], (7, 16), 7).shape == (7, 16, 1)  # 7 · 12 / 5 is 16.8
    np.testing.assert_array_equal(resize(RAMP, (7, 18), 7)[:, [0, -1]], 0)


@pytest.mark.parametrize("size", [(3, 8), (5, 12), (4, 5)])
def test_the_middle_as_it_is(size):
    top, left = (5 - size[0]) // 2, (12 - size[1]) // 2
    np.testing.assert_array_equal(resize(RAMP, size, "none"), RAMP[top : top + size[0], left : left + size[1]])


def test_what_is_too_small_lies_on_black():
    found = resize(RAMP + 1, (8, 9), "none")
    np.testing.assert_array_equal(found[2:7], RAMP[:, 1:10] + 1)
    np.testing.assert_array_equal(found[[0, 1, 7]], 0)


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_filters_are_pillows(resample):
    by_hand = Image.fromarray(RANDOM).resize((5, 9), Image.Resampling[resample.upper()])
    np.testing.assert_array_equal(resize(RANDOM, (9, 5), "squash", resample), np.asarray(by_hand))


def saved(image, kind="JPEG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((83, 61))


PARTS = [(top, left, 75 - top, 100 - left) for top in range(0, 75, 7) for left in range(0, 100, 9)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 5), (40, 30), (30, 40), (90, 200), (64, 64)])
@pytest.mark.parametrize("pillow", ["12", "here"])
def test_parts_of_training_images_are_pillows(channels, size, pillow, monkeypatch):
    """All but a hundredth of the levels, the others but one in ten thousand to one level, and these to two; of noise as
    well, where each pass overshoots and is cut off. Pillow 12 is two calls, across and down."""
    if pillow == "12":
        monkeypatch.setattr(images, "ACROSS_FIRST", True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (75, 100, channels), np.uint8)
    smooth = np.asarray(PHOTO.resize((100, 75)))[..., :channels]
    counts = np.zeros(3, int)
    for image in (smooth, noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        for top, left, height, width in PARTS:
            by_hand = np.ascontiguousarray(image[top : top + height, left : left + width])
            for each in ((height, size[1]), size) if pillow == "12" else (size,):
                by_hand = resize(by_hand, each, "squash")
            found = squash_box(image, (top, left, height, width), size)
            assert found.shape == (*size, channels) and found.dtype == np.uint8
            apart = np.abs(found.astype(int) - by_hand)
            counts += np.bincount(apart.ravel(), minlength=3)
    assert counts[1:].sum() <= 0.01 * counts.sum() and counts[2] <= 1e-4 * counts.sum(), counts


def test_without_the_fast_extra_they_are_pillows(monkeypatch):
    monkeypatch.setattr(images, "cykooz_resizer", None)
    whole = np.asarray(PHOTO)
    by_hand = resize(np.ascontiguousarray(whole[5:45, 10:60]), (24, 24), "squash")
    np.testing.assert_array_equal(squash_box(whole, (5, 10, 40, 50), (24, 24)), by_hand)


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


def test_a_thin_picture_is_not_made_gigabytes():
    thin = np.zeros((1, 20_000, 3), np.uint8)
    thin[:, 10_000:] = 255
    for picture, axis in ((thin, 1), (thin.swapaxes(0, 1), 0)):
        found = resize(picture, (224, 224), 224)
        assert found.shape == (224, 224, 3)
        shades = found.mean(axis=(1 - axis, 2))
        assert shades[0] < 60 and shades[-1] > 195 and (np.diff(shades) >= 0).all()


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
