"""DALL-E's image tokenizer against the public networks' recorded file, and its losses worked by hand."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jmm.errors import UserError
from jmm.models.dvae import VARIANTS, Config, mapped, unmapped
from jmm.objectives.quantization import logit_laplace
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden

TINY = Config((16, 16), 1, 12, 4, 3, 1, 6, kl_steps=4, temperature_steps=8)


def last(channels_first):
    return np.moveaxis(channels_first, 1, -1)


def theirs(path, groups):
    """The name of a tensor of ours; the decoder counts its groups from the coarse end."""
    side, path = path.split("/", 1)
    path = re.sub(r"^first/conv", "input", re.sub(r"^last/conv", "output.conv", path))
    if found := re.match(r"group(\d)_(\d)/", path):
        group = int(found[1]) + 1 if side == "encoder" else groups - int(found[1])
        path = f"group_{group}.block_{int(found[2]) + 1}." + path[found.end() :]
        path = re.sub(r"conv(\d)/conv", r"res_path.conv_\1", path.replace("shortcut/conv", "id_path"))
    return f"{side[:3]}.blocks." + path.replace("/kernel", ".w").replace("/bias", ".b")


@pytest.fixture(scope="module", params=golden_files("openai_dvae"), ids=lambda path: path.stem)
def public(request):
    """Module, variables and file."""
    golden = read_golden(request.param)
    reading, writing = golden.config["enc"], golden.config["dec"]
    size = (golden.config["S"],) * 2
    blocks = reading["n_blk_per_group"]
    config = Config(size, 3, reading["vocab_size"], reading["n_hid"], 4, blocks, writing["n_init"])
    module = config.build()
    image = jnp.asarray(2 * last(golden.inputs["image"]) - 1)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image=image))
    named = {path: theirs(path, config.groups) for path in flatten_dict(made["params"], sep="/")}
    assert set(named.values()) == set(golden.weights)
    flat = {path: golden.weights[name] for path, name in named.items()}
    flat = {path: each.transpose(2, 3, 1, 0) if each.ndim == 4 else each for path, each in flat.items()}
    return module, {"params": unflatten_dict(flat, sep="/"), "annealing": {"steps": jnp.zeros((), jnp.int32)}}, golden


def test_equals_public(public):
    module, variables, golden = public
    expected, image = golden.outputs, jnp.asarray(2 * last(golden.inputs["image"]) - 1)
    assert_close(mapped(image), last(expected["mapped"]), 1e-6)
    found = jax.jit(lambda image: module.apply(variables, image=image))(image)
    assert_close(found["code_logits"], last(expected["logits"]))
    np.testing.assert_array_equal(found["codes"], expected["idx"])
    assert_close((found["image"] + 1) / 2, last(expected["rec"]))
    weights = jax.nn.softmax(jnp.asarray(last(expected["logits"])))
    assert_close(module.apply(variables, weights, method="decode_weights"), last(expected["soft_stats"]))


def test_published_size():
    config = VARIANTS["dvae"]
    made = jax.eval_shape(lambda: config.build().init(jax.random.key(0), image=jnp.zeros((1, 256, 256, 3))))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in made["params"].items()}
    assert config.grid == (32, 32)
    assert sizes == {"encoder": 53_786_240, "decoder": 43_829_766}


def test_pixels_come_back():
    image = jnp.linspace(-1, 1, 9)
    inner = mapped(image)
    assert inner.min() == pytest.approx(0.1) and inner.max() == pytest.approx(0.9)
    np.testing.assert_allclose(unmapped(jnp.log(inner / (1 - inner))), image, atol=1e-6)


def test_the_density_is_one():
    """∫ f(x) dx over (0, 1), of two means and scales."""
    x = (jnp.arange(200_000) + 0.5) / 200_000
    for mean, scale in ((0.0, 0.5), (0.7, 0.9)):
        density = np.exp(-logit_laplace(x, jnp.full_like(x, mean), jnp.full_like(x, np.log(scale))))
        np.testing.assert_allclose(density.mean(), 1, rtol=2e-3)


def test_what_is_annealed():
    """Temperature and weight of the divergence at the first step, half way and at the end."""
    module = TINY.build()
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 1)), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), image=image)

    @jax.jit
    def at(steps):
        moved = {**variables, "annealing": {"steps": steps}}
        return TINY.loss(module, moved, {"image": image}, {"dropout": jax.random.key(1)})

    for steps, temperature, share in (
        (0, 1, 0),
        (2, None, 0.5),
        (4, (1 + 1 / 16) / 2, 1),
        (8, 1 / 16, 1),
        (9, 1 / 16, 1),
    ):
        loss = at(jnp.int32(steps))
        assert loss.updates["annealing"]["steps"] == steps + 1
        metrics = {name: float(value) for name, value in loss.metrics.items()}
        if temperature is not None:
            assert metrics["temperature"] == pytest.approx(temperature)
        weight = share * 6.6 / (TINY.stride**2 * 1)
        assert loss.value == pytest.approx(metrics["reconstruction"] + weight * metrics["divergence"], rel=1e-5)


def test_an_image_that_codes_do_not_divide():
    module = replace(TINY, image_size=(18, 16)).build()
    with pytest.raises(UserError, match="18×16 does not divide into codes of 4×4 pixels"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), image=jnp.zeros((1, 18, 16, 1))))
