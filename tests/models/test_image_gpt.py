"""Image GPT against transformers, its palette, and what it writes with a cache and without."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data_pipelines.preprocess import Preprocess
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.generation import generate
from jmm.model import Model
from jmm.models.image_gpt import VARIANTS, Config, image_gpt
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close

EXACT = 1e-4
KEYS = {"dropout": jax.random.key(0)}
CASES = [(24, 2, 4, 3, 8), (30, 3, 3, 1, 16)]
"""Width, depth, heads, channels and colours."""


def config_of(width, depth, heads, channels, colours):
    rng = np.random.default_rng(0)
    palette = tuple(np.round(rng.uniform(-1, 1, colours * channels), 3).tolist())
    stack = image_gpt(width, depth, heads).decoder
    return Config(stack, (3, 4), channels, colours, palette)


def theirs(config):
    stack = config.decoder
    made = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(
            vocab_size=config.num_codes + 1,
            n_positions=config.length,
            n_embd=stack.width,
            n_layer=stack.depth,
            n_head=stack.num_heads,
        )
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def params_of(model, config, of=lambda parameter: parameter):
    """Their weights, or what else `of` takes of each, as our parameters."""
    found = {name: np.asarray(of(each).detach()) for name, each in model.named_parameters()}
    heads, width = config.decoder.num_heads, config.decoder.width

    def layer(i):
        at = f"transformer.h.{i}."
        kernels, biases = (np.split(found[f"{at}attn.c_attn.{kind}"], 3, axis=-1) for kind in ("weight", "bias"))
        attention = {
            name: {"kernel": kernel.reshape(width, heads, -1), "bias": bias.reshape(heads, -1)}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        out = found[f"{at}attn.c_proj.weight"].reshape(heads, -1, width)
        return {
            "attention": attention | {"out": {"kernel": out, "bias": found[f"{at}attn.c_proj.bias"]}},
            "attention_norm": {"scale": found[f"{at}ln_1.weight"]},
            "mlp_norm": {"scale": found[f"{at}ln_2.weight"]},
            "mlp": {
                "up": {"kernel": found[f"{at}mlp.c_fc.weight"], "bias": found[f"{at}mlp.c_fc.bias"]},
                "down": {"kernel": found[f"{at}mlp.c_proj.weight"], "bias": found[f"{at}mlp.c_proj.bias"]},
            },
        }

    layers = [layer(i) for i in range(config.decoder.depth)]
    return jax.tree.map(
        jnp.asarray,
        {
            "embedding": {"embedding": found["transformer.wte.weight"]},
            "positions": {"table": found["transformer.wpe.weight"]},
            "decoder": {
                "blocks": jax.tree.map(lambda *each: np.stack(each), *layers),
                "norm": {"scale": found["transformer.ln_f.weight"]},
            },
            "head": {"kernel": found["lm_head.weight"].T},
        },
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_theirs(case):
    """Logits, loss and every gradient."""
    config = config_of(*case)
    model, module = theirs(config), config.build()
    image = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, config.channels)), jnp.float32)
    variables = {"params": params_of(model, config), "buffers": {"clusters": jnp.asarray(config.palette)}}
    outputs = jax.jit(partial(module.apply))(variables, image=image)
    codes = np.asarray(outputs["codes"], np.int64).reshape(2, -1)
    distances = np.square(np.asarray(image).reshape(2, -1, 1, config.channels) - config.palette).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))

    start = np.full((2, 1), config.num_codes)
    ids = torch.tensor(np.concatenate([start, codes], axis=1)[:, :-1])
    logits = model(input_ids=ids).logits
    assert_close(outputs["logits"], logits.detach(), EXACT)
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, config.num_codes), torch.tensor(codes).reshape(-1))
    expected.backward()

    def loss(params):
        found = config.loss(module, {**variables, "params": params}, {"image": image}, KEYS)
        return found.value, found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert_close(found.value, expected.detach(), EXACT)
    assert_close(found.metrics["bits_per_pixel"], expected.detach() / np.log(2), EXACT)
    np.testing.assert_allclose(found.rows.mean(), found.value, rtol=1e-5)
    wanted = params_of(model, config, lambda parameter: parameter.grad)
    jax.tree.map(lambda ours, other: assert_close(ours, other, EXACT), joined(gradients), joined(wanted))


def joined(params):
    """Queries, keys and values as one array, as theirs are: the gradient of the keys' bias alone is 0 but for rounding,
    because it moves all logits of a query alike."""
    blocks = params["decoder"]["blocks"]
    attention = dict(blocks["attention"])
    three = jax.tree.map(lambda *each: np.stack(each), *(attention.pop(name) for name in ("query", "key", "value")))
    blocks = {**blocks, "attention": {**attention, "three": three}}
    return {**params, "decoder": {**params["decoder"], "blocks": blocks}}


def test_a_cache_writes_what_reading_all_anew_writes():
    """A whole image, and the lower part of one."""
    config = config_of(*CASES[0])
    module = config.build()
    rng = np.random.default_rng(0)
    made = module.init(jax.random.key(0), image=jnp.zeros((1, 3, 4, 3)))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), made["params"])
    model = Model(config, module, {**made, "params": params}, Preprocess(), make_mesh(MeshShape(), jax.devices()[:1]))
    upper = rng.integers(0, config.num_codes, (2, 4)).astype(np.int32)
    for given in (upper[:, :0], upper):
        count = config.length - given.shape[1]
        written = generate(model, {"codes": given}, max_new_tokens=count).ids
        codes = jnp.concatenate([given, written], axis=1).reshape(2, 3, 4)
        image = module.apply(model.variables, codes, method="decode")
        again = model(image=image)
        np.testing.assert_array_equal(again["codes"], codes)
        np.testing.assert_array_equal(again["logits"][:, -count:].argmax(-1), written)
    with pytest.raises(UserError, match="holds 12 tokens"):
        generate(model, {"codes": upper}, max_new_tokens=9)


def test_palettes():
    stack = TransformerConfig(8, 1, 1, 8)
    even = Config(stack, num_codes=8).palette
    assert even.shape == (8, 3)
    assert set(map(tuple, even.tolist())) == {(r, g, b) for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)}
    with pytest.raises(UserError, match="clusters has 5 values; 2 colours of 3 channels have 6"):
        Config(stack, num_codes=2, clusters=(0.0,) * 5)
    with pytest.raises(UserError, match="500 colours of 3 channels cannot be evenly spaced"):
        Config(stack, num_codes=500)


PARAMETERS = {"image_gpt_small": 76_000_000, "image_gpt_medium": 455_000_000, "image_gpt_large": 1_362_000_000}
"""Of the paper, section 3.2, which rounds them."""


@pytest.mark.parametrize("name", VARIANTS)
def test_full_sizes(name):
    module = VARIANTS[name].build()
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image=jnp.zeros((1, 32, 32, 3))))
    count = sum(leaf.size for leaf in jax.tree.leaves(made["params"]))
    assert abs(count / PARAMETERS[name] - 1) < 0.01, count
