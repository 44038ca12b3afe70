"""diffusers' VQModel with either norm: config, names and numbers in both directions, and what is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.numpy import load_file, save_file

import jmm
from data_pipelines.preprocess import Preprocess
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.interop.convert import save
from jmm.interop.family import Renamed, export_family, import_family, read_config, write_config
from jmm.interop.vqmodel import FAMILIES, READING, WRITING
from jmm.model import Model
from jmm.models.vit import ImageTower
from jmm.models.vqgan import Critic, Drawn, Following, Perceptual
from jmm.parts.transformer import TransformerConfig
from tests.arrays import assert_close
from tests.interop.theirs import assert_same_gradients, assert_same_tensors, perturbed_model, tensors_of

(FAMILY,) = FAMILIES
WEIGHTS = "diffusion_pytorch_model.safetensors"


def shaped(widths, attention, **more):
    """Their arguments."""
    return {
        "block_out_channels": widths,
        "down_block_types": tuple(READING[each] for each in attention),
        "up_block_types": tuple(WRITING[each] for each in reversed(attention)),
        "sample_size": 16,
        **more,
    }


CASES = {
    "vqgan": shaped((8, 16), (False, True), norm_num_groups=4, latent_channels=6, vq_embed_dim=5, num_vq_embeddings=20),
    "movq": shaped(
        (32, 32, 64),
        (False, True, True),
        latent_channels=4,
        num_vq_embeddings=11,
        norm_type="spatial",
        layers_per_block=2,
    ),
    "grey": shaped((6,), (False,), norm_num_groups=3, in_channels=1, out_channels=1, num_vq_embeddings=7),
}


@pytest.fixture(scope="module", params=CASES)
def model(request):
    """One of theirs, every weight of it perturbed, its codes far enough apart that rounding chooses no other."""
    found = perturbed_model(VQModel(**CASES[request.param]))
    with torch.no_grad():
        found.quantize.embedding.weight *= 10
    return found


def config_json(model):
    return json.loads(model.to_json_string())


def ours(model):
    tensors = tensors_of(model)
    config = read_config(FAMILY, config_json(model), Renamed(tensors, FAMILY.renames))
    return config, import_family(FAMILY, config, tensors)


def picture(config, rows=2):
    size = (rows, *config.image_size, config.channels)
    return jnp.asarray(np.random.default_rng(3).uniform(-1, 1, size), jnp.float32)


def first(channels_last):
    return torch.tensor(np.moveaxis(np.array(channels_last), -1, 1))


def test_outputs_and_gradients(model):
    config, variables = ours(model)
    module, image = config.build(), picture(config)
    found = jax.jit(lambda variables: module.apply(variables, image=image))(variables)
    latents = model.encode(first(image)).latents
    assert_close(found["vectors"], latents.detach().movedim(1, -1))
    expected = model.decode(latents)
    assert_close(found["image"], expected.sample.detach().movedim(1, -1))
    assert len(np.unique(found["codes"])) > 1
    unquantised = model.decode(latents, force_not_quantize=True).sample
    assert_close(
        module.apply(variables, found["vectors"], method="decode_vectors"), unquantised.detach().movedim(1, -1)
    )

    def value(variables):
        return config.loss(module, variables, {"image": image}, {"dropout": jax.random.key(0)}).value

    loss, gradient = jax.jit(jax.value_and_grad(value))(variables)
    model.zero_grad()
    # Theirs gives one for each row where nothing is quantised, and one for all here.
    total = (expected.sample - first(image)).abs().mean() + expected.commit_loss.mean()
    total.backward()
    assert_close(loss, total.detach())
    assert_same_gradients(FAMILY, config, gradient, model)


def test_there_and_back(model, tmp_path):
    model.save_pretrained(tmp_path / "theirs")
    loaded = jmm.load(tmp_path / "theirs")
    save(loaded, tmp_path / "native", format="jmm")
    save(jmm.load(tmp_path / "native"), tmp_path / "ours")
    assert_same_tensors(load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "theirs" / WEIGHTS))
    theirs = json.loads((tmp_path / "theirs/config.json").read_text())
    assert json.loads((tmp_path / "ours/config.json").read_text()) == theirs
    again, image = VQModel.from_pretrained(tmp_path / "ours").eval(), picture(loaded.config)
    assert_close(loaded(image=image)["image"], again(first(image)).sample.detach().movedim(1, -1))
    written = write_config(FAMILY, loaded.config)
    said = {name: value for name, value in theirs.items() if value is not None}
    assert {name: value for name, value in written.items() if name in said} == {
        name: value for name, value in said.items() if name in written
    }


def test_names_of_older_files(model):
    config, variables = ours(model)
    exported = export_family(FAMILY, config, variables)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in exported.items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != exported.keys()
    again = import_family(FAMILY, config, renamed)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm_type": "layer"}, "norm_type in config.json is 'layer'"),
        ({"act_fn": "relu"}, "act_fn in config.json is 'relu'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention in config.json is False"),
        ({"out_channels": 4}, "out_channels in config.json is 4"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "its levels are DownEncoderBlock2D or AttnDown"),
        ({"up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}, "with attention on the same"),
        ({"block_out_channels": [8, 12]}, "does not divide another, 12"),
        ({"block_out_channels": []}, "must be a list of positive numbers"),
        ({"norm_type": "spatial"}, "norm_num_groups in config.json is 4"),
        ({"norm_num_groups": 3}, "norm_num_groups in config.json is 3, which does not divide a width, 8"),
    ],
)
def test_what_is_not_supported_is_named(changes, says):
    with pytest.raises(UserError, match=says):
        read_config(FAMILY, {"_class_name": "VQModel", **CASES["vqgan"], **changes})


def test_what_was_trained_is_a_tokenizer_of_theirs(tmp_path):
    """Without the networks that only its training needs; codes that followed the vectors are codes."""
    config = read_config(FAMILY, {"_class_name": "VQModel", **CASES["grey"]})
    tower = ImageTower(TransformerConfig(8, 1, 2, 16), (16, 16), 8, 1)
    config = replace(config, quantizer=Following(), critic=Critic(4, 1), perceptual=Perceptual(tower))
    module, rng, image = config.build(), np.random.default_rng(7), picture(config)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image=image))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    preprocess = Preprocess((16, 16), 1, resize="squash")
    model = Model(config, module, variables, preprocess, make_mesh(MeshShape(), jax.devices()[:1]))
    save(model, tmp_path / "theirs")
    theirs, said = VQModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(said.values()), said
    found = model(image=image)
    assert len(np.unique(found["codes"])) > 1
    assert_close(found["image"], theirs.eval()(first(image)).sample.detach().movedim(1, -1))
    again = jmm.load(tmp_path / "theirs")
    np.testing.assert_array_equal(again(image=image)["codes"], found["codes"])
    other = replace(config, quantizer=Following(unit_length=True))
    with pytest.raises(UserError, match=r"VQModel cannot express this model: quantizer\.unit_length is True"):
        save(replace(model, config=other, module=other.build()), tmp_path / "unit")


def test_what_theirs_cannot_express():
    config = read_config(FAMILY, {"_class_name": "VQModel", **CASES["vqgan"]})
    assert write_config(FAMILY, replace(config, distance="squared"))["num_vq_embeddings"] == 20
    for other, says in (
        (replace(config, critic=Critic()), "critic"),
        (replace(config, quantizer=Drawn()), "quantizer"),
    ):
        with pytest.raises(UserError, match=f"VQModel cannot express this model: {says}"):
            write_config(FAMILY, other)


def test_a_folder_that_lacks_a_tensor(tmp_path):
    VQModel(**CASES["grey"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors.pop("quant_conv.bias")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"the tensors do not fit the model: quant_conv\.bias is missing"):
        jmm.load(tmp_path)
