"""What a system becomes when it is exported."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.interop.programs import programs
from tests.interop.exports import CONFIGS


def test_modalities_that_do_something_alone_are_programs_of_their_own():
    found = {name: [each.name for each in programs(config)] for name, config in CONFIGS.items()}
    assert found["vit"] == ["image"]
    assert found["clip"] == ["image", "text"]
    assert found["llama"] == ["text"]
    assert found["t5"] == ["text_target"]


def test_a_program_needs_its_own_weights():
    image, text = programs(CONFIGS["resnet"])
    assert any(name.startswith("batch_stats/image/") for name in image.weights)
    assert not any(name.startswith(("params/text", "batch_stats/text")) for name in image.weights)
    assert not any(name.startswith(("params/image", "batch_stats/image")) for name in text.weights)
    assert "params/logit_scale" in image.weights and "params/logit_scale" in text.weights


class Fused(nn.Module):
    """Each modality does something alone, and both do more together."""

    numpy: bool

    @nn.compact
    def __call__(self, *, image=None, text=None, train: bool = False):
        outputs = {}
        if image is not None:
            outputs["image_embedding"] = nn.Dense(3, name="image")(image.reshape(image.shape[0], -1))
        if text is not None:
            # numpy knows no length that is a symbol.
            places = (np if self.numpy else jnp).arange(text.shape[1])
            outputs["text_embedding"] = nn.Embed(5, 3, name="text")(text) * places[:, None]
        if len(outputs) == 2:
            outputs["logits"] = outputs["image_embedding"] @ outputs["text_embedding"].mean(1).T
        return outputs


@dataclass(frozen=True)
class Config:
    """Its config."""

    numpy: bool

    def build(self, dtype=jnp.float32):
        return Fused(self.numpy)

    def batch_spec(self, batch_size):
        return {
            "image": jax.ShapeDtypeStruct((batch_size, 2, 2, 1), jnp.float32),
            "text": jax.ShapeDtypeStruct((batch_size, 7), jnp.int32),
        }

    def loss(self, module, variables, batch, rngs):
        raise NotImplementedError


def test_what_modalities_do_together_is_a_program_too():
    assert [each.name for each in programs(Config(numpy=False))] == ["image", "text", "image_text"]


@pytest.mark.parametrize(("numpy", "length"), [(False, "text_length"), (True, 7)])
def test_the_length_is_free_where_the_system_can(numpy, length):
    _, text, _ = programs(Config(numpy))
    assert text.inputs == {"text": ("batch", length)}
    assert [str(size) for size in text.outputs["text_embedding"].shape] == ["batch", str(length), "3"]


def test_an_example_has_padding_on_both_sides_and_known_ids():
    (program,) = programs(CONFIGS["t5"])
    batch = program.example(CONFIGS["t5"], 40, 9)
    assert {name: each.shape for name, each in batch.items()} == {
        **dict.fromkeys(("text", "text_mask"), (40, 9)),
        **dict.fromkeys(("target", "target_mask"), (40, 8)),
    }
    mask = batch["text_mask"]
    assert mask[0].all() and mask.any(1).all() and not mask[:, 0].all() and not mask[:, -1].all()
    assert set(batch["text"].ravel()) <= set(range(50))
