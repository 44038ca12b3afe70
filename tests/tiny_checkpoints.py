"""Whole published folders with random weights: model, tokenizer and image processor."""

import torch
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tests.data_pipelines.tokenizer_folders import make_folder

SIZE = {"height": 24, "width": 24}
TOWER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TWO_TOWERS = {
    "clip": (CLIPConfig, CLIPModel, CLIPImageProcessorPil(size={"shortest_edge": 27}, crop_size=SIZE), 77),
    "siglip": (SiglipConfig, SiglipModel, SiglipImageProcessorPil(size=SIZE), 64),
    "siglip_cased": (SiglipConfig, SiglipModel, SiglipImageProcessorPil(size=SIZE), 64),
}
"""Of each: config, model, image processor, length of texts."""


def two_towers(name, path):
    """The folder `path` with a checkpoint of `TWO_TOWERS`, none of its weights as it was initialised."""
    config, kind, processor, length = TWO_TOWERS[name]
    make_folder(name, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": length, **marks}
    text |= {"projection_size": TOWER["hidden_size"]} if kind is SiglipModel else {}
    vision = {**TOWER, "image_size": 24, "patch_size": 8}
    torch.manual_seed(0)
    model = kind(config(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim else 0.5)
            if name == "logit_scale":  # so that probabilities are neither 0 nor 1
                parameter.fill_(1.5)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
