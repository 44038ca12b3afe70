"""VQGAN, its Gumbel variant and MoVQ against their recorded files, and the play of its two players."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipelines.preprocess import Preprocess
from experiments.quickstart import experiment
from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import on_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape, Optimizer
from jmm.interop.convert import save
from jmm.interop.initial import initial_weights
from jmm.model import Model
from jmm.models import vit
from jmm.models.vit import ImageTower
from jmm.models.vqgan import VARIANTS, Config, Critic, Drawn, Following, GridConfig, Learned, Perceptual
from jmm.objectives.quantization import nearest_code
from jmm.parts.transformer import TransformerConfig
from jmm.training.step import build
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden
from tests.parts.test_autoencoder import config_of, last, theirs
from tests.parts.test_discriminator import variables_of

TINY = Config(
    (16, 16), 1, GridConfig(4, (1, 2), 1, (1,), 6, 2), 12, 6, Following(restart_below=0.2), critic=Critic(4, 1, start=2)
)
TOWER = ImageTower(TransformerConfig(8, 2, 2, 16), (16, 16), 4, 1, stages=(1,), stage_width=4, pool="none")
LOOKING = replace(TINY, perceptual=Perceptual(TOWER, 0.5))
RUDALLE = [path for path in golden_files("rudalle_vqgan_gumbel_vae") if "_dwt" not in path.stem]
"""Those whose decoder paints pixels."""
KEYS = {"dropout": jax.random.key(1)}


def name_of(path, **words):
    """Of ours, the name of their tensor."""
    path = re.sub(r"^before/conv", "quant_conv", re.sub(r"^after/conv", "post_quant_conv", path))
    path = re.sub(r"^last/conv", "decoder.conv_out", path)
    if path.startswith("quantizer/"):
        part = re.sub(r"projection/(kernel|bias)", r"proj.\1", path.removeprefix("quantizer/"))
        return "quantize." + part.replace("codes", words["codes"]).replace("kernel", "weight")
    side, _, rest = path.partition("/")
    if side in ("encoder", "decoder"):
        levels = {"encoder": "down", "decoder": "up"}[side]
        return f"{side}." + theirs(rest, levels, words["norm"] if side == "decoder" else "")
    return theirs(path, "", "")


def read(golden, prefix="", skip=(), **changes):
    """The system of a file, and its variables."""
    shape, weights = golden.config, dict(golden.weights)
    image = shape["ddconfig"]["resolution"]
    config = Config((image, image), 3, config_of(shape["ddconfig"]), shape["n_embed"], shape["embed_dim"], critic=None)
    config = replace(config, **changes)
    module = config.build()
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image=jnp.zeros((1, image, image, 3))))
    variables = {"annealing": {"steps": jnp.zeros((), jnp.int32)}} if config.anneals else {}
    flat, used = {}, set()
    codes = "embed.weight" if isinstance(config.quantizer, Drawn) else "embedding.weight"
    for path, leaf in flatten_dict(made["params"], sep="/").items():
        if path.startswith("critic/"):
            continue
        name = prefix + name_of(path, codes=codes, norm="norm_layer." if config.modulated else "")
        used.add(name)
        flat[path] = jnp.asarray(weights[name].transpose(2, 3, 1, 0) if weights[name].ndim == 4 else weights[name])
        flat[path] = flat[path].reshape(leaf.shape)
    params = unflatten_dict(flat, sep="/")
    if config.critic:
        critic = variables_of(weights, config.critic.layers)
        params["critic"], variables["batch_stats"] = critic["params"], {"critic": critic["batch_stats"]}
    left = {name for name in set(weights) - used if not name.startswith("disc.") and not name.endswith(skip)}
    assert not left
    return config, module, {"params": params, **variables}


@pytest.mark.parametrize("path", golden_files("taming_vqgan"), ids=lambda path: path.stem)
def test_equals_vqgan(path):
    """The reconstruction, every term of the loss, and its gradients: those of the recorded sum."""
    golden, expected = read_golden(path), read_golden(path).outputs
    shape = golden.config["disc"]
    critic = Critic(shape["ndf"], shape["n_layers"], golden.config["disc_weight"], start=0)
    config, module, variables = read(golden, "model.", critic=critic, quantizer=Learned(weighted="codebook"))
    image = jnp.asarray(last(golden.inputs["image"]))
    found = jax.jit(lambda variables: module.apply(variables, image=image))(variables)
    assert_close(found["vectors"], last(expected["h"]))
    np.testing.assert_array_equal(found["codes"].reshape(-1), expected["idx"])
    assert_close(found["image"], last(expected["rec"]))
    assert_close(module.apply(variables, found["codes"], method="decode"), last(expected["rec"]))

    def value(params):
        loss = config.losses(module, {**variables, "params": params}, {"image": image}, KEYS, train=False)
        return loss.value, loss

    gradients, loss = jax.jit(jax.grad(value, has_aux=True))(variables["params"])
    for ours, name in {
        "reconstruction": "nll",
        "quantization": "codebook_loss_legacy",
        "deceit": "g_loss",
        "deceit_weight": "d_weight",
        "critic": "hinge_d_loss",
    }.items():
        assert_close(loss.metrics[ours], expected[name])
    assert_close(loss.value, expected["loss"] + expected["hinge_d_loss"])
    flat = {
        "model." + name_of(path, codes="embedding.weight", norm=""): each
        for path, each in flatten_dict({k: v for k, v in gradients.items() if k != "critic"}, sep="/").items()
    }
    assert golden.grads
    for name, gradient in golden.grads.items():
        kernel = gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient
        assert_close(flat[name], kernel)


@pytest.mark.parametrize("path", RUDALLE, ids=lambda path: path.stem)
def test_equals_rudalle(path):
    golden, expected = read_golden(path), read_golden(path).outputs
    _, module, variables = read(golden, "model.", quantizer=Drawn())
    image = jnp.asarray(2 * last(golden.inputs["image"]) - 1)
    found = jax.jit(lambda image: module.apply(variables, image=image))(image)
    assert_close(found["vectors"], last(expected["h"]))
    assert_close(found["code_logits"], last(expected["code_logits"]))
    codes = found["codes"]
    np.testing.assert_array_equal(codes.reshape(len(codes), -1), expected["idx"])
    np.testing.assert_array_equal(module.apply(variables, image, method="encode"), codes)
    assert_close(found["image"], last(expected["rec_unclamped"]))
    assert_close(jnp.clip(module.apply(variables, codes, method="decode") + 1, 0, 2) / 2, last(expected["rec"]))


@pytest.mark.parametrize("path", golden_files("movq"), ids=lambda path: path.stem)
def test_equals_movq(path):
    golden, expected = read_golden(path), read_golden(path).outputs
    _, module, variables = read(golden, modulated=True)
    image, latent = jnp.asarray(last(golden.inputs["image"])), jnp.asarray(last(expected["latent"]))
    assert_close(module.apply(variables, image, method="encode_vectors"), latent)
    found = jax.jit(lambda image: module.apply(variables, image=image))(image)
    np.testing.assert_array_equal(found["codes"].reshape(-1), expected["idx"])
    assert_close(found["image"], last(expected["rec_quant"]))
    assert_close(module.apply(variables, latent, method="decode_vectors"), last(expected["rec"]))
    quantised = module.apply(variables, found["codes"], method=lambda module, codes: module.quantizer.look_up(codes))
    assert_close(quantised, last(expected["quant"]))
    assert_close(nearest_code(latent, quantised), expected["quant_loss"])


@cache
def player(config):
    """Variables, and a function from the step to loss and gradients of a few images."""
    module = config.build()
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), image=image)

    def value(params, steps):
        moved = {**variables, "params": params, "annealing": {"steps": steps}}
        loss = config.loss(module, moved, {"image": image}, KEYS)
        return loss.value, loss

    play = jax.jit(jax.grad(value, has_aux=True)).lower(variables["params"], jnp.int32(0))
    # Nearly all that these tests do is compiling.
    compiled = play.compile(compiler_options={"xla_backend_optimization_level": 0})
    return variables, lambda steps: compiled(variables["params"], jnp.int32(steps))


def played(config, steps):
    """Loss and gradients at a step."""
    gradients, loss = player(config)[1](steps)
    return loss, dict(gradients)


def size(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_the_critic_waits():
    waiting, before = played(TINY, 1)
    playing, after = played(TINY, 2)
    alone = float(waiting.metrics["reconstruction"] + waiting.metrics["quantization"])
    assert float(waiting.value) == pytest.approx(alone, rel=1e-6)
    told = float(playing.metrics["deceit_weight"] * playing.metrics["deceit"] + playing.metrics["critic"])
    assert float(playing.value) == pytest.approx(alone + told, rel=1e-5)
    assert size(before.pop("critic")) == 0 < size(after.pop("critic"))
    assert size(jax.tree.map(jnp.subtract, before["decoder"], after["decoder"])) > 0


def test_each_player_learns_by_its_own_loss():
    """The critic is led by the hinge alone, so its gradients do not know the weight of its word."""
    _, heard = played(TINY, 2)
    _, deaf = played(replace(TINY, critic=replace(TINY.critic, weight=0.0)), 2)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), heard["critic"], deaf["critic"])
    assert size(jax.tree.map(jnp.subtract, heard["last"], deaf["last"])) > 1e-3
    _, alone = played(TINY, 1)
    for name in ("encoder", "decoder", "last"):
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), alone[name], deaf[name])


def test_what_moves_without_gradients():
    loss, _ = played(TINY, 0)
    assert loss.updates["annealing"]["steps"] == 1
    before, after = (tree["codebook"]["quantizer"]["book"] for tree in (player(TINY)[0], loss.updates))
    assert size(before.sizes) == 0 < size(after.sizes)
    # Of the real images, then of those made.
    assert {int(norm["count"]) for norm in loss.updates["batch_stats"]["critic"].values()} == {2}


def test_drawn_codes_pass_gradients_to_the_encoder():
    config = replace(TINY, quantizer=Drawn(temperature_steps=4), critic=None)
    early, gradients = played(config, 0)
    assert size(gradients["encoder"]) > 0 and size(gradients["quantizer"]) > 0
    assert early.metrics["quantization"] > 0
    assert "codebook" not in early.updates


def test_a_network_that_looks_is_heard_and_does_not_learn():
    config = replace(LOOKING, critic=None)
    looking, gradients = played(config, 0)
    blind, own = played(replace(config, perceptual=Perceptual(TOWER, 0.0)), 0)
    seen = float(looking.metrics["perceptual"])
    assert seen > 0
    assert float(looking.value) == pytest.approx(float(blind.value) + 0.5 * seen, rel=1e-5)
    assert size(gradients.pop("image")) == 0
    assert size(jax.tree.map(jnp.subtract, gradients["encoder"], own["encoder"])) > 1e-4
    # One stage and two layers.
    look = config._features_of(config.build(), player(config)[0])
    shapes = [each.shape for each in jax.eval_shape(look, jnp.zeros((3, 16, 16, 1)))]
    assert sorted(shapes) == [(3, 4, 4, 16), (3, 16, 8), (3, 16, 8)]


def test_the_network_that_looks_comes_from_a_folder(tmp_path):
    known = vit.Config(replace(TOWER, pool="class"), 10)
    module, mesh = known.build(), make_mesh(MeshShape(), jax.devices()[:1])
    variables = jax.jit(module.init)(jax.random.key(7), image=jnp.zeros((1, 16, 16, 1)))
    save(Model(known, module, variables, Preprocess((16, 16), 1), mesh), tmp_path / "vit", "jmm")
    base = replace(experiment(), model=LOOKING, batch_size=4, steps=3, evaluations=())
    config = replace(
        base, initial=str(tmp_path / "vit"), fresh=("^(?!image/)",), optimizer=Optimizer(1e-3, freeze=("^image/",))
    )
    config = replace(config, model=replace(LOOKING, perceptual=Perceptual(replace(TOWER, class_token=True))))
    made = build(config, mesh)
    state, anew = made.init(initial_weights(config)), made.init()
    eye = dict(variables["params"]["image"])
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], eye)
    for name in ("codebook", "annealing"):
        jax.tree.map(np.testing.assert_array_equal, state.collections[name], anew.collections[name])
    with on_mesh(mesh):
        image = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
        state, _ = made.step(state, made.place({"image": image}))
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], eye)
    with pytest.raises(UserError, match=r"perceptual\.tower looks at images of 1 channels, these have 3"):
        replace(LOOKING, channels=3)


def ten_steps(shape, devices):
    """Losses and codebook of a GAN whose dead codes start over."""
    optimizer = Optimizer(1e-3, clip_norm=None, freeze=("^image/",))
    config = replace(experiment(), model=LOOKING, batch_size=16, steps=10, evaluations=(), optimizer=optimizer)
    images = np.random.default_rng(0).uniform(-1, 1, (10, 16, 16, 16, 1)).astype(np.float32)
    made = build(config, make_mesh(shape, jax.devices()[:devices]))
    state, losses = made.init(), []
    with on_mesh(made.mesh):
        batches = [made.place({"image": each}) for each in images]
        step = made.step.lower(state, batches[0]).compile(compiler_options={"xla_backend_optimization_level": 0})
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.collections["codebook"]["quantizer"]["book"])


def test_both_players_and_the_codebook_on_eight_devices():
    alone, book = ten_steps(MeshShape(), 1)
    losses, own = ten_steps(MeshShape(data=2, fsdp=2, tensor=2), 8)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    np.testing.assert_allclose(own.codes, book.codes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(own.sizes, book.sizes, rtol=1e-5)


def test_an_image_that_codes_do_not_divide():
    module = TINY.build()
    with pytest.raises(UserError, match="18×17 does not divide into codes of 2×2 pixels"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), image=jnp.zeros((1, 18, 17, 1))))


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name):
    """VQGAN's 16 × 16 grid of 16,384 codes, and 4 channels of MoVQ's at an eighth."""
    config = VARIANTS[name]
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    module = config.build()
    made = jax.eval_shape(lambda image: module.init_with_output(jax.random.key(0), image=image)[0], image)
    assert made["codes"].shape == (1, *config.grid)
    assert made["vectors"].shape[3] == config.code_width
