"""Preprocessing of checkpoint folders against transformers' image processors (Pillow) on the same folders."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

from data_pipelines.checkpoint import preprocessor_of
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.errors import UserError
from jmm.training.workdir import from_json, to_json

RNG = np.random.default_rng(0)
SIZES = [(61, 40), (40, 61), (33, 33), (24, 28), (9, 7), (7, 9), (1, 30), (30, 1), (1, 1), (200, 25), (113, 119)]
PICTURES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def folder_with(path, config, processor=None, name="preprocessor_config.json", tokens=None):
    """A folder with these files."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (path / name).write_text(json.dumps(processor))
    if tokens is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(tokens))
    return path


def height_width(height, width):
    """A size as transformers writes it."""
    return {"height": height, "width": width}


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=height_width(24, 24)),
    "clip, odd crop, other edge": CLIPImageProcessorPil(size={"shortest_edge": 29}, crop_size=height_width(24, 21)),
    "clip, crop larger than the edge": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size=height_width(27, 24)
    ),
    "clip, bilinear": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=height_width(24, 24), resample=2),
    "clip, crop alone": CLIPImageProcessorPil(do_resize=False, crop_size=height_width(25, 24)),
    "clip, squashed": CLIPImageProcessorPil(size=height_width(20, 24), do_center_crop=False),
    "clip, squashed and cropped to the same": CLIPImageProcessorPil(
        size=height_width(24, 24), crop_size=height_width(24, 24)
    ),
    "clip, not normalised": CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size=height_width(24, 24), do_normalize=False
    ),
    "clip, not rescaled": CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size=height_width(24, 24), do_rescale=False, image_mean=[99.0] * 3
    ),
    "siglip": SiglipImageProcessorPil(size=height_width(24, 24)),
    "siglip, rectangle": SiglipImageProcessorPil(size=height_width(20, 30), rescale_factor=1 / 127.5),
    "vit": ViTImageProcessorPil(size=height_width(24, 24)),
    "vit, nearest": ViTImageProcessorPil(size=height_width(30, 20), resample=0, image_mean=[0.1, 0.2, 0.3]),
    "vit, lanczos": ViTImageProcessorPil(size=height_width(24, 24), resample=1),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_are_those_of_transformers(tmp_path, name, file):
    theirs, kind = PROCESSORS[name], name.split(",")[0]
    written = theirs.to_dict()
    written = {"image_processor": written} if file.startswith("processor") else written
    ours = preprocessor_of(folder_with(tmp_path, {"model_type": kind}, json.loads(json.dumps(written)), file))
    expected = theirs(images=[Image.fromarray(each) for each in PICTURES], return_tensors="np")["pixel_values"]
    found = ours(images=PICTURES)["image"]
    assert found.shape == expected.transpose(0, 2, 3, 1).shape
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)
    assert from_json(json.loads(json.dumps(to_json(ours))), "preprocess") == ours


OLD = {
    "clip": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 29, "crop_size": 24, "resample": 3},
        CLIPImageProcessorPil(size={"shortest_edge": 29}, crop_size=height_width(24, 24)),
    ),
    "vit": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "resample": 2, "image_mean": [0.1, 0.2, 0.3]},
        ViTImageProcessorPil(size=height_width(24, 24), image_mean=[0.1, 0.2, 0.3]),
    ),
    "siglip": (
        {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 20, "width": 24}},
        SiglipImageProcessorPil(size=height_width(20, 24)),
    ),
}


@pytest.mark.parametrize("kind", OLD)
def test_files_of_older_versions(tmp_path, kind):
    written, theirs = OLD[kind]
    ours = preprocessor_of(folder_with(tmp_path, {"model_type": kind}, written))
    expected = theirs(images=[Image.fromarray(each) for each in PICTURES], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours(images=PICTURES)["image"], expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "resize", "resample"),
    [("clip", 32, "bicubic"), ("siglip", "squash", "bicubic"), ("vit", "squash", "bilinear")],
)
def test_without_a_file_the_family_and_the_model_say(tmp_path, kind, resize, resample):
    config = {"model_type": kind, "vision_config": {"image_size": 32, "num_channels": 3}}
    found = preprocessor_of(folder_with(tmp_path, config))
    assert (found.image_size, found.resize, found.resample) == ((32, 32), resize, resample)


def test_channels_are_the_models(tmp_path):
    config = {"model_type": "vit", "image_size": [8, 12], "num_channels": 1}
    found = preprocessor_of(folder_with(tmp_path, config, {"image_mean": [0.2], "image_std": [0.4], "size": [8, 12]}))
    assert found(images=PICTURES)["image"].shape == (len(PICTURES), 8, 12, 1)
    assert (found.mean, found.std) == ((0.2,), (0.4,))


@pytest.mark.parametrize(
    ("config", "tokens", "length", "padding"),
    [
        ({"model_type": "clip"}, None, 77, "masked"),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 16}}, None, 16, "masked"),
        ({"model_type": "clip", "text_config": {}}, {"model_max_length": 12}, 12, "masked"),
        ({"model_type": "siglip"}, {"model_input_names": ["input_ids"]}, 64, "counted"),
        ({"model_type": "siglip", "text_config": {"max_position_embeddings": 32}}, {}, 32, "masked"),
        ({"model_type": "siglip"}, {"model_input_names": None}, 64, "masked"),
        ({"model_type": "clip"}, {"model_input_names": ["input_ids"]}, 77, "masked"),
        ({"model_type": "clip"}, {"model_input_names": None}, 77, "masked"),
        ({"model_type": "gpt2", "n_positions": 99}, {"model_max_length": int(1e30)}, 99, "longest"),
        ({"model_type": "gpt2"}, None, 1024, "longest"),
        ({"model_type": "bert", "max_position_embeddings": 40}, {"model_max_length": 512}, 40, "longest"),
        ({"model_type": "t5"}, {"model_max_length": 512}, 512, "longest"),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, None, 512, "longest"),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 0}, None, 513, "longest"),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, None, 512, "longest"),
        ({"model_type": "llama"}, None, 2048, "longest"),
    ],
)
def test_the_length_of_texts(tmp_path, config, tokens, length, padding):
    found = preprocessor_of(folder_with(tmp_path, config, tokens=tokens))
    assert (found.text_length, found.padding) == (length, padding)
    assert found.tokenizer == PretrainedTokenizer(str(tmp_path))


def test_a_model_of_texts_has_no_image_settings(tmp_path):
    found = preprocessor_of(folder_with(tmp_path, {"model_type": "gpt2"}))
    assert (found.image_size, found.mean, found.resize) == (Preprocess().image_size, Preprocess().mean, "crop")


CLIP = {"model_type": "clip"}


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        (CLIP, {"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor .* is not supported"),
        (CLIP, {"size": {"shortest_edge": 24, "longest_edge": 60}}, "size .* height and width are supported"),
        (CLIP, {"size": "large"}, "size .* is 'large'"),
        (CLIP, {"size": {"height": 0, "width": 3}}, "size .* height and width"),
        (CLIP, {"crop_size": {"shortest_edge": 24}}, "crop_size .* height and width"),
        (CLIP, {"size": {"height": 30, "width": 30}, "crop_size": 24}, "size .30, 30. and crop_size .24, 24. is not"),
        (CLIP, {"do_center_crop": False}, "does not squash must crop"),
        (CLIP, {"resample": 9}, "resample .* is 9"),
        (CLIP, {"do_resize": "yes"}, "do_resize .* must be true or false"),
        (CLIP, {"image_mean": ["a"]}, "image_mean .* one number a channel"),
        (CLIP, {"image_mean": [0.5, 0.5]}, r"image_mean .* is \[0.5, 0.5\]; .* one number a channel, .* are 3, or one"),
        (CLIP, {"image_std": []}, r"image_std .* is \[\]; it must be one positive number a channel"),
        (CLIP, {"image_std": [0.5, 0, 0.5]}, r"image_std .* is \[0.5, 0, 0.5\]; it must be one positive number"),
        (CLIP, {"image_std": 0}, "image_std .* positive number"),
        (CLIP, {"image_std": [float("nan")]}, "image_std .* positive number"),
        ({"model_type": "vit", "num_channels": 1}, {"image_mean": [0.5]}, "image_std .* of which there are 1"),
        ({"model_type": "vit", "num_channels": "one"}, None, "num_channels in config.json is 'one'"),
        (CLIP, {"rescale_factor": 0}, "rescale_factor .* positive number"),
        ({"model_type": "vit", "image_size": "big"}, {"do_resize": True}, "image_size in config.json is 'big'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, config, processor, message):
    with pytest.raises(UserError, match=message):
        preprocessor_of(folder_with(tmp_path, config, processor))


def test_null_is_the_default(tmp_path):
    vision = dict.fromkeys(("num_channels", "image_size"))
    found = preprocessor_of(folder_with(tmp_path, {"model_type": "clip", "vision_config": vision}))
    assert found == preprocessor_of(folder_with(tmp_path, CLIP))
    assert (found.channels, found.image_size) == (3, (224, 224))


def test_names_of_inputs_are_a_list(tmp_path):
    with pytest.raises(UserError, match=r"model_input_names in tokenizer_config\.json is 5; it must be a list"):
        preprocessor_of(folder_with(tmp_path, CLIP, tokens={"model_input_names": 5}))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        preprocessor_of(tmp_path)
