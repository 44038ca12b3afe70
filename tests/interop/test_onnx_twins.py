"""What jmm's systems give, and their twins in PyTorch in our names and shapes."""

from dataclasses import replace

import pytest
import torch

from jmm.interop.families import FAMILIES
from jmm.interop.onnx import load_twin
from jmm.interop.onnx_twins import TWINS
from jmm.interop.programs import programs
from jmm.models import clip, decoder, encoder, encoder_decoder
from jmm.parts.transformer import TransformerConfig
from tests.interop.exports import CONFIGS, assert_same_outputs, model_of

POST = TransformerConfig(24, 2, 3, 40, norm_order="post", norm_eps=1e-12)
XLM_R = replace(encoder.xlm_r(24, 2, 3), vocab_size=50, context_length=16)
OPT = TransformerConfig(24, 2, 3, 40, activation="relu", norm_order="post", norm_eps=1e-5)
SIGLIP = clip.siglip(TransformerConfig(24, 2, 3, 40, activation="gelu_tanh"), 8, 16, 9)
SMALL = {"vocab_size": 50, "context_length": 16}
VQGAN = CONFIGS["vqgan"]
MOVQ = replace(VQGAN, levels=replace(VQGAN.levels, width=32, groups=32), code_width=6, modulated=True)
OTHERS = {
    "vit_body": replace(CONFIGS["vit"], num_classes=None),
    "vit_pooler": replace(CONFIGS["vit"], num_classes=None, pooler=True),
    "siglip": replace(SIGLIP, text=replace(SIGLIP.text, vocab_size=50)),
    "gpt2": decoder.Config(TransformerConfig(30, 2, 5, 120, activation="gelu_tanh", norm_eps=1e-5), **SMALL),
    "opt": decoder.Config(OPT, **SMALL, first_position=2, embed_dim=12),
    "bert": encoder.Config(POST, **SMALL),
    "bert_masked": encoder.Config(POST, **SMALL, pooler="none"),
    "bert_body": encoder.Config(POST, **SMALL, pooler="vector", masked_head=None),
    "bert_untied": encoder.Config(POST, **SMALL, tied_head=False),
    "xlm_r": XLM_R,
    "xlm_r_untied": replace(XLM_R, tied_head=False),
    "xlm_r_body": replace(XLM_R, masked_head=None),
    "bart": replace(encoder_decoder.bart(24, 2, 3), **SMALL),
    "bart_untied": replace(encoder_decoder.bart(24, 2, 3), **SMALL, target_vocab_size=50, tied_head=False),
    "marian_of_two_vocabularies": replace(
        encoder_decoder.marian(24, 2, 3, 40), **SMALL, start_id=39, target_vocab_size=40
    ),
    "marian": replace(encoder_decoder.marian(24, 2, 3, 40), **SMALL, start_id=49),
    "movq": MOVQ,
    "t5_v1_1": replace(encoder_decoder.t5_v1_1(24, 2, 3, 40), **SMALL),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_twin_gives_the_same(name, tmp_path):
    model = model_of(OTHERS[name])
    twin = load_twin(model, tmp_path)
    run = TWINS[type(twin).__name__](twin)
    for program in programs(model.config):
        batch = program.example(model.config, 3, 1000)
        with torch.no_grad():
            outputs = run(program.name, **{field: torch.from_numpy(each) for field, each in batch.items()})
        assert_same_outputs(model, program, batch, {field: each.detach().numpy() for field, each in outputs.items()})


def test_which_families_have_no_twin():
    without = {name for name, family in FAMILIES.items() if TWINS.keys().isdisjoint(family.architectures)}
    assert without == {"open_clip", "gemma", "paligemma"}, "these are refused by name"
