"""The checker finds what was drawn, in clean and in spoilt pictures, and knows what captions say."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_pipelines.scene_checker import Said, said, see, true_of
from data_pipelines.scene_world import Thing
from data_pipelines.scenes import Scenes

NUMBER = 12


def things_of(example):
    return sorted((each.size, each.colour, each.material, each.shape) for each in example["scene"].things)


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (Scenes(words=0.0), NUMBER),
        (Scenes(words=0.0, plain=True, image_size=80), 3),
        (Scenes(words=0.0, plain=True, counts=(2,), image_size=32), NUMBER),
    ],
    ids=["64", "80", "32"],
)
def test_it_finds_what_was_drawn(data, number):
    source = data.source("held_out")
    for i in range(number):
        example = source[i]
        found = see(example["image"])
        assert sorted((each.size, each.colour, each.material, each.shape) for each in found) == things_of(example)
        for each in found:
            distances = [np.hypot(*np.subtract(each.centre, true.centre)) for true in example["scene"].things]
            assert min(distances) < 1.5 / data.image_size
        assert data.true_of(example["caption"], data.see(example["image"]))


def test_it_finds_it_in_pictures_that_a_model_could_have_drawn():
    source, right = Scenes(words=0.0, plain=True).source("held_out"), 0
    rng = np.random.default_rng(0)
    for i in range(NUMBER):
        example = source[i]
        blurred = Image.fromarray(example["image"]).filter(ImageFilter.GaussianBlur(0.7))
        noisy = np.asarray(blurred) + rng.normal(0, 8, (64, 64, 3))
        right += true_of(example["caption"], see(np.clip(noisy, 0, 255).astype(np.uint8)))
    assert right >= NUMBER - 1


def test_nothing_is_found_where_nothing_is():
    for image in (np.full((64, 64, 3), 240), np.random.default_rng(0).integers(200, 256, (64, 64, 3))):
        assert see(image.astype(np.uint8)) == ()


def test_what_captions_say():
    two = "a large red circle above a small blue striped square"
    assert said(two) == Said((("large", "red", None, "circle"), ("small", "blue", "striped", "square")), "above")
    assert said(two + ", with the word LEMO").things == said(two).things
    three = "a small black star, a small red heart and a large blue cross"
    assert said(three).how is None
    assert [each[-1] for each in said(three).things] == ["star", "heart", "cross"]
    assert said("no object at all") == Said((), None)


RED = Thing("circle", "red", "large", "matte", (0.2, 0.5), 0.15, (0, 0, 0))
BLUE = Thing("square", "blue", "small", "striped", (0.7, 0.5), 0.09, (0, 0, 0))
TWINS = (RED, replace(RED, centre=(0.7, 0.5)))


@pytest.mark.parametrize(
    ("caption", "things", "true"),
    [
        ("a large red circle above a small blue square", (RED, BLUE), True),
        ("a large red circle above a small blue square", (BLUE, RED), True),
        ("a small blue square below a large red circle", (RED, BLUE), True),
        ("a large red circle below a small blue square", (RED, BLUE), False),
        ("a large red circle left of a small blue square", (RED, BLUE), False),
        ("a large red circle above a small blue striped square", (RED, BLUE), True),
        ("a large red shiny circle above a small blue square", (RED, BLUE), False),
        ("a large red circle above a large blue square", (RED, BLUE), False),
        ("a large red circle above a small green square", (RED, BLUE), False),
        ("a large red circle above a small blue star", (RED, BLUE), False),
        ("a large red circle above a small blue square", (RED,), False),
        ("a large red circle above a small blue square", (RED, BLUE, BLUE), False),
        ("a small blue square and a large red circle", (RED, BLUE), True),
        ("a large red circle and a large red circle", TWINS, True),
        ("a large red circle and a large red circle", (RED, BLUE), False),
        ("a large red circle above a large red circle", TWINS, True),
        ("nothing to be seen", (), False),
    ],
)
def test_whether_a_caption_is_true(caption, things, true):
    assert true_of(caption, things) == true
