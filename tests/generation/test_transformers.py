"""Greedy ids against `generate` of transformers with the same weights, every one perturbed."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.generation import Sampling
from jmm.generation.write import Length, read, write
from jmm.parts.transformer import unstack
from tests.models import test_decoder_parity as decoders
from tests.models import test_encoder_decoder_parity as encoder_decoders

LENGTHS = np.array([8, 3, 5, 7, 1, 2, 6, 4])
NEW = 9
STOP, PAD = 5, 1
"""97 of 99 ids are drawn for prompts: neither of these."""
CONTINUED = (
    *("gpt2", "gpt2 of 3 heads, untied", "opt", "opt-350m of 3 heads", "llama", "llama of 3 heads, tied, biases"),
    *("qwen2 of 7 heads, tied", "qwen2 of 4 heads"),
)
READ = ("bart", "bart of 3 and 5 heads, scaled", "t5", "t5 of 3 heads, few buckets", "t5 v1.1", "mt5 of 3 heads")
each_case = pytest.mark.parametrize("case", [*CONTINUED, *READ])


def reference(case):
    return (decoders if case in CONTINUED else encoder_decoders).reference(case)


@cache
def prompts(case):
    """Eight rows of different lengths; padded on the side that transformers wants."""
    rng, place = np.random.default_rng(2), np.arange(LENGTHS.max())
    mask = place >= (LENGTHS.max() - LENGTHS)[:, None] if case in CONTINUED else place < LENGTHS[:, None]
    return np.where(mask, rng.integers(6, 99, mask.shape), PAD).astype(np.int32), mask


@cache
def theirs(case, stop=None):
    model, text, mask = reference(case)[0], *map(torch.tensor, prompts(case))
    model.generation_config.forced_eos_token_id = None  # BART's would write it last, whatever the logits
    with torch.no_grad():
        ids = model.generate(
            text.long(),
            attention_mask=mask.long(),
            max_new_tokens=NEW,
            do_sample=False,
            num_beams=1,
            pad_token_id=PAD,
            eos_token_id=stop,
        ).numpy()
    return ids[:, LENGTHS.max() :] if case in CONTINUED else ids[:, 1:]


@cache
def layers(case):
    _, config, variables = reference(case)
    return config.build(), unstack(jax.tree.map(jnp.asarray, variables))


def ours(case, rows=slice(None), stop_ids=()):
    module, variables = layers(case)
    text, mask = (jnp.asarray(each[rows]) for each in prompts(case))
    read_prompts = read(module, variables, {"text": text, "text_mask": mask}, NEW)
    length = Length(NEW, stop_ids, PAD)
    return jax.device_get(write(module, variables, read_prompts, jax.random.key(0), Sampling(), length)[0])


@each_case
def test_same_ids(case):
    written = ours(case)
    np.testing.assert_array_equal(written.ids, theirs(case))
    np.testing.assert_array_equal(written.lengths, NEW)
    assert len(np.unique(written.ids)) > 8


@each_case
def test_a_row_is_what_it_is_alone(case):
    together = ours(case).ids
    for row in range(len(LENGTHS)):
        np.testing.assert_array_equal(ours(case, slice(row, row + 1)).ids[0], together[row])


@pytest.mark.parametrize("case", ["gpt2", "llama", "t5"])
def test_rows_end_at_the_same_token(case):
    free = theirs(case)
    # A token that some rows write early, and others late or never.
    ends = {token: np.where((free == token).any(1), (free == token).argmax(1) + 1, NEW) for token in np.unique(free)}
    stop = max(ends, key=lambda token: len(np.unique(ends[token])))
    assert len(np.unique(ends[stop])) > 1
    written = ours(case, stop_ids=(int(stop),))
    expected = theirs(case, int(stop))
    np.testing.assert_array_equal(written.ids[:, : expected.shape[1]], expected)
    np.testing.assert_array_equal(written.ids[:, expected.shape[1] :], PAD)
    np.testing.assert_array_equal(written.lengths, ends[stop])
