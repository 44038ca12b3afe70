"""The loop: every step against the whole text at once, where it ends, what is compiled."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.generation.sample import Sampling
from jmm.generation.write import Length, Written, read, write
from jmm.parts.transformer import unstack
from jmm.protocol import Writer
from tests.arrays import assert_close
from tests.generation.systems import SYSTEMS, VOCABULARY, variables_of

# Each program runs a few times: most of its time is the compiler's.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROWS, WIDTH, NEW = 3, 6, 5
PLACE = np.arange(WIDTH)
MASK = np.stack([PLACE >= 0, PLACE < 2, (PLACE > 1) & (PLACE != 3)])
"""A whole row, one padded on the right, and one padded on the left and once between."""
RNG = np.random.default_rng(1)
TEXT = RNG.integers(3, VOCABULARY, MASK.shape).astype(np.int32)
NEXT = RNG.integers(3, VOCABULARY, (ROWS, NEW)).astype(np.int32)
PROMPTS = {"text": jnp.asarray(TEXT), "text_mask": jnp.asarray(MASK)}
each_system = pytest.mark.parametrize("name", SYSTEMS)


def expected_logits(name, variables):
    """Those of each new token by a forward pass over the whole text."""
    module = SYSTEMS[name].build()
    if not module.continues:
        return jit(module.apply)(variables, **PROMPTS, target=jnp.asarray(NEXT))["logits"]
    whole = np.zeros((ROWS, WIDTH + NEW), np.int32)
    lengths = MASK.sum(1)
    for row in range(ROWS):
        whole[row, : lengths[row] + NEW] = [*TEXT[row, MASK[row]], *NEXT[row]]
    logits = np.asarray(jit(module.apply)(variables, text=jnp.asarray(whole))["logits"])
    return np.stack([logits[row, n - 1 : n - 1 + NEW] for row, n in enumerate(lengths)])


@each_system
@pytest.mark.parametrize("stacked", [True, False])
def test_every_step_is_the_whole_text_at_once(name, stacked):
    variables, module = variables_of(name), SYSTEMS[name].build()
    expected = expected_logits(name, variables)
    given = variables if stacked else unstack(variables)
    logits, lengths, cache = read(module, given, PROMPTS, NEW)
    np.testing.assert_array_equal(lengths, MASK.sum(1) if module.continues else 1)
    assert_close(logits, expected[:, 0], what="first token")
    step = jit(partial(module.apply, method="step", mutable=["cache"]))
    for t in range(NEW - 1):
        logits, changed = step({**given, "cache": cache}, jnp.asarray(NEXT[:, t]), lengths + t)
        cache = changed["cache"]
        assert_close(logits, expected[:, t + 1], what=f"token {t + 1}")


@each_system
def test_the_first_logits_are_computed_for_one_token_alone(name):
    module, variables = SYSTEMS[name].build(), variables_of(name)
    program = jax.make_jaxpr(lambda: module.apply(variables, **PROMPTS, method="prefill", mutable=["cache"]))()
    assert set(re.findall(rf"f32\[(\d+),(\d+),{VOCABULARY}\]", str(program))) == {(str(ROWS), "1")}


def written_by(name, sampling=None, length=None, seed=0, prompts=PROMPTS):
    module, variables = SYSTEMS[name].build(), unstack(variables_of(name))
    length = length or Length(NEW)
    done = write(
        module,
        variables,
        read(module, variables, prompts, length.max_new_tokens),
        jax.random.key(seed),
        sampling or Sampling(),
        length,
    )
    return jax.device_get(done[0])


def test_one_program_for_each_shape():
    compiled = read._cache_size, write._cache_size
    written_by("gpt2")
    before = [count() for count in compiled]
    written_by("gpt2", seed=1)
    written_by("gpt2", prompts={"text": PROMPTS["text"][::-1], "text_mask": PROMPTS["text_mask"]})
    assert [count() for count in compiled] == before
    written_by("gpt2", prompts={name: each[:2] for name, each in PROMPTS.items()})
    assert [count() for count in compiled] == [each + 1 for each in before]


def test_draws_follow_the_seed():
    first, again, other = (written_by("llama", Sampling(1.0, top_k=50), seed=seed).ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != written_by("llama").ids).any()


def test_drawing_from_one_token_is_greedy():
    np.testing.assert_array_equal(written_by("bart", Sampling(0.7, top_k=1)).ids, written_by("bart").ids)


# --- the loop by itself ---


class Counting(nn.Module):
    """Each row writes the numbers that follow its prompt, and counts how often a step was asked for."""

    max_tokens = None
    continues = True

    def prefill(self, *, text):
        self.put_variable("cache", "steps", jnp.int32(0))
        return jax.nn.one_hot(text[:, -1] + 1, 20), jnp.full(text.shape[:1], text.shape[1])

    def step(self, token, position):
        self.put_variable("cache", "steps", self.get_variable("cache", "steps") + 1)
        return jax.nn.one_hot(token + 1, 20) + 0 * position[:, None]


def counted(last, length):
    prompts = read(Counting(), {}, {"text": jnp.array(last)[:, None]}, length.max_new_tokens)
    written, after = write(Counting(), {}, prompts, jax.random.key(0), Sampling(), length)
    return written, int(after.cache["steps"])


def test_it_ends_with_the_last_row():
    assert isinstance(Counting(), Writer)
    (ids, lengths), steps = counted([3, 1, 5], Length(8, (6, 7), 0))
    np.testing.assert_array_equal(ids, [[4, 5, 6] + [0] * 5, [2, 3, 4, 5, 6] + [0] * 3, [6] + [0] * 7])
    np.testing.assert_array_equal(lengths, [3, 5, 1])
    assert steps == 4


def test_nothing_is_read_that_is_not_needed():
    written, steps = counted([3, 1], Length(3))
    np.testing.assert_array_equal(written.ids, [[4, 5, 6], [2, 3, 4]])
    np.testing.assert_array_equal(written.lengths, [3, 3])
    assert steps == 2
    written, steps = counted([3, 5], Length(6, (6,), 9))
    np.testing.assert_array_equal(written.ids, [[4, 5, 6, 9, 9, 9], [6, 9, 9, 9, 9, 9]])
    assert steps == 2
    assert isinstance(written, Written)


def test_one_token_needs_no_step():
    written, steps = counted([3], Length(1))
    np.testing.assert_array_equal(written.ids, [[4]])
    assert steps == 0
