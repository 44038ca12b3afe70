"""The convolutional encoder and decoder against the recorded files of VQGAN, of ruDALL-E's tokenizer and of MoVQ."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jmm.parts.autoencoder import Conv, Decoder, Encoder, GridConfig
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden

NAMES = (
    (r"^decoder/", ""),
    (r"^level(\d)_(\d)_block", r"LEVELS.\1.block.\2"),
    (r"^level(\d)_(\d)_attention", r"LEVELS.\1.attn.\2"),
    (r"^level(\d)_halve", r"down.\1.downsample"),
    (r"^level(\d)_double/conv", r"up.\1.upsample.conv"),
    (r"^middle(\d)_block", r"mid.block_\1"),
    (r"^middle_attention", r"mid.attn_1"),
    (r"^first/conv", "conv_in"),
    (r"^last/conv", "conv_out"),
    (r"^norm/", "norm_out/"),
    (r"attention/(q|k|v)(uery|ey|alue)/", r"\1/"),
    (r"attention/out/", "proj_out/"),
    (r"shortcut/conv", "nin_shortcut"),
    (r"(conv\d)/conv", r"\1"),
    (r"scale/conv", "conv_y"),
    (r"shift/conv", "conv_b"),
    (r"(norm\w*)/norm/", r"\1/NORM"),
    (r"(kernel|scale)$", "weight"),
    (r"/", "."),
)
"""Of ours, the names of theirs, one change after another."""


def theirs(path, levels, norm):
    for pattern, name in NAMES:
        path = re.sub(pattern, name, path)
    return path.replace("LEVELS", levels).replace("NORM", norm)


def params_of(module, weights, levels, norm, *shapes):
    """Of their weights under our names, all of them and each in its layout."""
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *(jnp.zeros(shape) for shape in shapes)))
    flat, used = {}, set()
    for path, leaf in flatten_dict(made["params"], sep="/").items():
        name = theirs(path, levels, norm)
        value = weights[name]
        used.add(name)
        flat[path] = (value.transpose(2, 3, 1, 0) if value.ndim == 4 else value).reshape(leaf.shape)
    assert used == set(weights)
    return {"params": unflatten_dict(flat, sep="/")}


def config_of(theirs):
    sizes = [theirs["resolution"] // 2**level for level in range(len(theirs["ch_mult"]))]
    return GridConfig(
        theirs["ch"],
        tuple(theirs["ch_mult"]),
        theirs["num_res_blocks"],
        tuple(level for level, size in enumerate(sizes) if size in theirs["attn_resolutions"]),
        theirs["z_channels"],
    )


def under(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def one_by_one(weights, name, x):
    """Their 1×1 convolution."""
    return jnp.einsum("bhwc,oc->bhwo", x, weights[f"{name}.weight"][:, :, 0, 0]) + weights[f"{name}.bias"]


class Painter(nn.Module):
    """The decoder and the convolution that makes an image of its features."""

    config: GridConfig

    def setup(self):
        self.decoder, self.last = Decoder(self.config), Conv(3)

    def __call__(self, *vectors):
        return self.last(self.decoder(*vectors))


def last(channels_first):
    return np.moveaxis(channels_first, 1, -1)


@pytest.mark.parametrize("path", golden_files("taming_vqgan"), ids=lambda path: path.stem)
def test_equals_vqgan(path):
    golden = read_golden(path)
    weights, config = under(golden.weights, "model."), config_of(golden.config["ddconfig"])
    image, encoder, decoder = last(golden.inputs["image"]), Encoder(config), Painter(config)
    reading = params_of(encoder, under(weights, "encoder."), "down", "", image.shape)
    z = jax.jit(encoder.apply)(reading, image)
    assert_close(z, last(golden.outputs["z"]))
    writing = params_of(decoder, under(weights, "decoder."), "up", "", z.shape)
    quantised = one_by_one(weights, "post_quant_conv", last(golden.outputs["quant"]))
    assert_close(jax.jit(decoder.apply)(writing, quantised), last(golden.outputs["rec"]))


@pytest.mark.parametrize("path", golden_files("movq"), ids=lambda path: path.stem)
def test_equals_movq(path):
    golden = read_golden(path)
    weights, config = golden.weights, config_of(golden.config["ddconfig"])
    image, encoder, decoder = last(golden.inputs["image"]), Encoder(config), Painter(config)
    reading = params_of(encoder, under(weights, "encoder."), "down", "", image.shape)
    latent = last(golden.outputs["latent"])
    assert_close(one_by_one(weights, "quant_conv", jax.jit(encoder.apply)(reading, image)), latent)
    z = one_by_one(weights, "post_quant_conv", latent)
    writing = params_of(decoder, under(weights, "decoder."), "up", "norm_layer.", z.shape, latent.shape)
    assert_close(jax.jit(decoder.apply)(writing, z, latent), last(golden.outputs["rec"]))


def test_levels_say_what_does_not_fit():
    with pytest.raises(ValueError, match="48 channels does not divide into 32 groups"):
        GridConfig(48)
    with pytest.raises(ValueError, match="levels \\(5,\\) of 5"):
        GridConfig(attention=(5,))
    assert GridConfig().stride == 16
