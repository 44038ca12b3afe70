"""Preprocessing of open_clip's directories: read, written, refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.checkpoint import CLIP_MEAN, CLIP_STD, preprocessor_of
from data_pipelines.preprocess import Preprocess
from data_pipelines.save import save_preprocess
from data_pipelines.tokenizer import ByteTokenizer
from jmm.errors import UserError

MODEL = {"vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 16}}


def folder_with(folder, model=MODEL, **preprocess_cfg):
    folder.mkdir(exist_ok=True)
    values = {"model_cfg": model, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return folder


def test_what_is_not_said_is_as_open_clip_has_it(tmp_path):
    found = preprocessor_of(folder_with(tmp_path))
    assert (found.image_size, found.resize, found.resample, found.text_length) == ((32, 32), 32, "bicubic", 16)
    assert (found.mean, found.std, found.padding, found.scale) == (CLIP_MEAN, CLIP_STD, "masked", 1 / 255)
    assert found.caption == "This is a photo of {}."
    bare = preprocessor_of(folder_with(tmp_path, model={}))
    assert (bare.image_size, bare.text_length) == ((224, 224), 77)


def test_what_is_said_is_read(tmp_path):
    cfg = {"size": [24, 40], "mean": [0, 0.5, 1], "std": [1, 2, 3], "interpolation": "bilinear"}
    found = preprocessor_of(folder_with(tmp_path, **cfg))
    assert (found.image_size, found.resize, found.resample) == ((24, 40), "crop", "bilinear")
    assert (found.mean, found.std) == ((0.0, 0.5, 1.0), (1.0, 2.0, 3.0))
    assert preprocessor_of(folder_with(tmp_path, resize_mode="squash")).resize == "squash"


def test_a_picture_is_resized_by_its_shorter_edge_and_cut(tmp_path):
    """Where the size fits, nothing is resampled, and the middle is the middle."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    found = preprocessor_of(folder_with(tmp_path))(images=[picture])["image"][0]
    pixels = torch.tensor(picture[:, 8:40]).float() / 255
    expected = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"resize_mode": "longest"}, "resize_mode in open_clip_config.json is 'longest', which is not supported"),
        ({"interpolation": "random"}, "interpolation in open_clip_config.json is 'random', which is not supported"),
        ({"mean": [0.5]}, "mean in preprocess_cfg of open_clip_config.json is [0.5]; it must be three numbers"),
        ({"std": "x"}, "std in preprocess_cfg of open_clip_config.json is 'x'; it must be three positive numbers"),
        ({"std": [1, 0, 1]}, "std in preprocess_cfg of open_clip_config.json is [1, 0, 1]; it must be three positive"),
        ({"size": "big"}, "size in preprocess_cfg of open_clip_config.json is 'big'; it must be a positive whole"),
        ({"size": [8, True]}, "size in preprocess_cfg of open_clip_config.json is [8, True]; it must be a positive"),
        ({"model": 5}, "model_cfg in open_clip_config.json is 5; it must be an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, cfg, says):
    with pytest.raises(UserError) as caught:
        preprocessor_of(folder_with(tmp_path, **cfg))
    assert str(caught.value).startswith(says)


PLAIN = Preprocess((24, 24), resize=24, mean=(0.1, 0.2, 0.3), std=(0.4,), tokenizer=ByteTokenizer())


@pytest.mark.parametrize(
    "preprocess",
    [PLAIN, replace(PLAIN, resize="squash", image_size=(24, 40)), replace(PLAIN, resample="bilinear")],
)
def test_what_is_written_is_read_again(tmp_path, preprocess):
    save_preprocess(preprocess, folder_with(tmp_path))
    found = preprocessor_of(tmp_path)
    for name in ("image_size", "resize", "resample", "scale", "channels", "mean"):
        assert getattr(found, name) == getattr(preprocess, name), name
    assert found.std == (0.4, 0.4, 0.4)
    written = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert written["model_cfg"] == MODEL
    assert (tmp_path / "tokenizer.json").exists() and not (tmp_path / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resize": "none"}, "resize none"),
        ({"resize": 30}, "resize 30"),
        ({"image_size": (24, 30)}, "resize 24"),
        ({"resample": "lanczos"}, "resample lanczos"),
        ({"scale": 1.0}, "scale 1.0"),
        ({"channels": 1}, "channels 1"),
    ],
)
def test_what_open_clip_cannot_do_is_not_written(tmp_path, changes, says):
    with pytest.raises(UserError, match=f"open_clip cannot preprocess pictures with {says}"):
        save_preprocess(replace(PLAIN, **changes), folder_with(tmp_path))
