"""CLIP with a residual network against open_clip's recorded files, and in training against the network in torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jmm.interop.family import abstract, import_family
from jmm.interop.fields import Fields
from jmm.interop.open_clip import FAMILIES, read
from jmm.interop.table import export_tensors
from jmm.models import clip
from jmm.objectives.contrastive import softmax_contrastive
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden
from tests.models.torch_resnet import resnet

FAMILY = FAMILIES[0]
COMPILER = {"xla_backend_optimization_level": 0}
"""Compiling is nearly all that these tests do."""
TEXT = clip.TextTower(TransformerConfig(16, 2, 2, 32, activation="quick_gelu", norm_eps=1e-5), 20, 6)
CASES = [
    # layers, width, heads, image size, embed_dim
    ((1, 2, 1, 1), 4, 2, (64, 64), 10),
    ((2, 1, 1, 2), 6, 3, (64, 96), 8),
    ((1, 1, 2, 1), 2, 1, (96, 32), 7),
]


def nchw(array):
    return np.moveaxis(np.asarray(array), -1, 1)


# --- recorded ---


@pytest.mark.parametrize("path", golden_files("openclip_clip_rn"), ids=lambda path: path.stem)
def test_equals_open_clip(path):
    """Every output, the loss and every gradient of the file, through the table that users' files go through."""
    golden = read_golden(path)
    model_cfg = {name: value for name, value in golden.config.items() if name != "B"}
    config = read(Fields({"model_cfg": model_cfg, "preprocess_cfg": {}}), golden.weights)
    variables = import_family(FAMILY, config, golden.weights)
    text = golden.inputs["text"]
    ends = np.arange(text.shape[1]) <= text.argmax(axis=1)[:, None]
    batch = {"image": np.moveaxis(golden.inputs["image"], 1, -1), "text": text, "text_mask": ends}
    batch = jax.tree.map(jnp.asarray, batch)
    module = config.build()

    def loss(params):
        # As recorded: in evaluation mode, where `Config.loss` trains.
        out, state = module.apply(
            variables | {"params": params}, **batch, capture_intermediates=True, mutable="intermediates"
        )
        scores = out["image_embedding"], out["text_embedding"], out["logit_scale"]
        return softmax_contrastive(*scores), (out, state["intermediates"])

    (value, (out, inner)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=COMPILER)(
        variables["params"]
    )
    found = {
        "image_features": out["image_embedding"],
        "image_features_raw": inner["image"]["pool"]["__call__"][0],
        "text_features": out["text_embedding"],
        "text_features_raw": inner["text_projection"]["__call__"][0],
        "logit_scale": out["logit_scale"],
        "loss": value,
    }
    for stage in range(1, 5):
        found[f"layer{stage}"] = nchw(inner["image"]["trunk"][f"stage{stage}"]["__call__"][0])
    assert found.keys() == golden.outputs.keys()
    for name, expected in golden.outputs.items():
        assert_close(found[name], expected, what=name)
    exported = export_tensors(FAMILY.table(config), variables | {"params": gradient})
    assert golden.grads
    for name, expected in golden.grads.items():
        assert_close(exported[name], expected, what=f"gradient of {name}")


# --- in torch ---


def config_of(layers, width, heads, image_size, embed_dim):
    tower = clip.ResNetTower(layers, width, heads, image_size)
    return clip.Config(tower, TEXT, embed_dim, image_projection=False)


def random_variables(config):
    """No weight zero or one, and variances above zero."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "count":
            return np.asarray(rng.integers(1, 9), np.int32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 10
        noise = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return np.asarray({"scale": 1 + noise, "var": 0.5 + noise**2}.get(name, noise), np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract(config))


def torch_state(config, variables):
    """The image tower's, in float64."""
    tensors = export_tensors(FAMILY.table(config), variables)
    state = {
        name.removeprefix("visual."): torch.tensor(np.array(tensor))
        for name, tensor in tensors.items()
        if name.startswith("visual.")
    }
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    moving = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor if name.endswith(moving) else tensor.requires_grad_() for name, tensor in state.items()}


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("case", CASES)
def test_image_tower_equals_torch(case, train):
    """Grid, embedding, gradients of every parameter, and the statistics after two batches."""
    layers, _, heads, size, embed_dim = case
    config = config_of(*case)
    module, variables = config.build(), random_variables(config)
    state = torch_state(config, variables)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3, embed_dim)).astype(np.float32)

    @partial(jax.jit, compiler_options=COMPILER)
    def run(variables, image):
        def loss(params):
            out, moved = module.apply(
                {**variables, "params": params}, image=image, train=train, mutable=["batch_stats"]
            )
            return jnp.sum(out["image_embedding"] * weight), (out, moved)

        return jax.grad(loss, has_aux=True)(variables["params"])

    for _ in range(2):
        image = rng.standard_normal((3, *size, 3)).astype(np.float32)
        gradient, (out, moved) = run(variables, image)
        variables = {**variables, **moved}
        stages, raw = resnet(state, torch.tensor(nchw(image)).double(), layers, heads, train)
        embedding = torch.nn.functional.normalize(raw, dim=-1)

    grid = stages[-1].detach().flatten(2).transpose(1, 2)
    assert_close(out["image_features"], grid, what="image_features")
    assert_close(out["image_embedding"], embedding.detach(), what="image_embedding")

    (embedding * torch.tensor(weight)).sum().backward()
    exported = export_tensors(FAMILY.table(config), {**variables, "params": gradient})
    largest = max(tensor.grad.abs().max().item() for tensor in state.values() if tensor.requires_grad)
    for name, tensor in state.items():
        if tensor.requires_grad:
            # Key biases and, in training, what a norm takes away have no gradient but rounding.
            worst = np.abs(exported[f"visual.{name}"] - tensor.grad.numpy()).max()
            assert worst <= 1e-4 * largest, f"{name}: gradient off by {worst:.3g} of {largest:.3g}"
        else:
            assert_close(exported[f"visual.{name}"], tensor, 1e-5, name)


# --- training ---


def test_the_loss_carries_the_statistics_it_moved():
    config = config_of(*CASES[0])
    module, variables = config.build(), random_variables(config)
    rng = np.random.default_rng(2)
    batch = {
        "image": jnp.asarray(rng.standard_normal((4, 64, 64, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(1, 20, (4, 6)), jnp.int32),
        "text_mask": jnp.ones((4, 6), bool),
    }

    @partial(jax.jit, compiler_options=COMPILER)
    def run(variables):
        moved = module.apply(variables, image=batch["image"], train=True, mutable=["batch_stats"])[1]
        return config.loss(module, variables, batch, {}), moved

    loss, moved = run(variables)
    assert loss.updates.keys() == {"batch_stats"}
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), loss.updates, moved)
    same = jax.tree.map(lambda a, b: bool((a == b).any()), loss.updates["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(same)), "every statistic moves"


# --- bad input, bfloat16 ---


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="an image of 64×48 does not divide by 32"):
        clip.VARIANTS["clip_rn50"].build().init(jax.random.key(0), image=jnp.zeros((1, 64, 48, 3)))


def test_bfloat16_is_near_float32_and_leaves_the_statistics_in_float32():
    config = config_of(*CASES[0])
    variables = random_variables(config)
    image = jnp.asarray(np.random.default_rng(3).standard_normal((3, 64, 64, 3)), jnp.float32)
    exact, near = (
        jax.jit(config.build(dtype).apply, compiler_options=COMPILER)(variables, image=image)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert near["image_embedding"].dtype == jnp.float32 and near["image_features"].dtype == jnp.bfloat16
    for name in ("image_embedding", "image_features"):
        # As for the transformers: some twenty roundings of 2⁻⁹ in a row, with a margin.
        assert_close(near[name], exact[name], 2**-5, name)

    train = partial(config.build(jnp.bfloat16).apply, image=image, train=True, mutable=["batch_stats"])
    _, moved = jax.eval_shape(train, variables)
    types = {leaf.dtype for leaf in jax.tree.leaves(moved)}
    assert types == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
