"""Resizing as transformers' image processors do it, to the bit: both go through Pillow."""

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from data_pipelines.preprocess import Preprocess
from tests.data_pipelines.test_naflex import picture

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CASES = {
    "clip": (CLIPImageProcessorPil(), Preprocess(resize=224, mean=CLIP_MEAN, std=CLIP_STD)),
    "clip at 336": (
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        Preprocess((336, 336), resize=336, mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "siglip": (SiglipImageProcessorPil(), Preprocess(resize="squash")),
    "vit": (ViTImageProcessorPil(), Preprocess(resize="squash", resample="bilinear")),
}


@pytest.mark.parametrize(("theirs", "ours"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("size", [(480, 640), (501, 333), (224, 224), (100, 90), (20, 500)])
def test_as_transformers(theirs, ours, size):
    image = picture(*size)
    asked = {"input_data_format": "channels_last", "return_tensors": "np"}
    raw = theirs(image, do_rescale=False, do_normalize=False, **asked)["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours.fit(image), raw)
    normal = theirs(image, **asked)["pixel_values"][0].transpose(1, 2, 0)
    # Values of about 2, of which float32 keeps 1e-7.
    np.testing.assert_allclose(ours.normalise(ours.fit(image)), normal, atol=1e-6)
