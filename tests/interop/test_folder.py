"""Published folders: loaded, run, written back as they were, and refused with one sentence."""

import json
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import jmm
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.interop.stored import open_folder, write_folder
from tests.arrays import assert_close
from tests.data_pipelines.tokenizer_folders import make_folder

IDS = np.random.default_rng(0).integers(1, 60, (2, 7)).astype(np.int32)


def llama(dtype=torch.float32):
    config = LlamaConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=40,
        vocab_size=60,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of several shards in bfloat16, and the logits of its model in float32."""
    folder = make_folder("llama", tmp_path_factory.mktemp("published") / "llama")
    model = llama(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20KB")
    logits = model.float()(torch.tensor(IDS).long()).logits.detach().numpy()
    return folder, logits


@pytest.fixture
def copied(published, tmp_path):
    """A copy of the folder that a test may spoil."""
    shutil.copytree(published[0], tmp_path / "llama")
    return tmp_path / "llama"


def test_a_folder_is_a_model(published):
    folder, logits = published
    model = jmm.load(folder)
    assert_close(model(text=IDS)["logits"], logits)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.variables))


def test_what_is_written_back_is_what_was_read(published, tmp_path):
    folder, _ = published
    jmm.save(jmm.load(folder), tmp_path / "back", shard_bytes=20_000)
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == sorted(path.name for path in folder.iterdir()) and "model.safetensors.index.json" in names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name


def test_other_weights_are_written_in_their_own_type(published, tmp_path):
    model = jmm.load(published[0])
    third = jax.tree.map(lambda leaf: leaf / 3, model.variables)
    jmm.save(model.with_variables(third), tmp_path / "back")
    back = jmm.load(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, back.variables, third)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert theirs.dtype == torch.float32
    expected = theirs(torch.tensor(IDS).long()).logits.detach().numpy()
    assert_close(model.with_variables(third)(text=IDS)["logits"], expected)


def test_a_type_that_is_asked_for(published, tmp_path):
    model = jmm.load(published[0])
    jmm.save(model, tmp_path / "half", dtype="float16")
    assert {each.dtype.name for each in load_file(tmp_path / "half" / "model.safetensors").values()} == {"float16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16


def test_a_model_of_ours_is_loaded_by_transformers(published, tmp_path):
    """Without the folder it came from: its config.json is made of our config alone."""
    model = replace(jmm.load(published[0]), origin=None)
    jmm.save(model, tmp_path / "ours")
    theirs, said = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    assert_close(model(text=IDS)["logits"], theirs(torch.tensor(IDS).long()).logits.detach().numpy())


def test_our_own_form_gives_the_same_model(published, tmp_path):
    model = jmm.load(published[0])
    jmm.save(model, tmp_path / "ours", "jmm")
    back = jmm.load(tmp_path / "ours")
    assert back.config == model.config
    assert replace(back.preprocess, tokenizer=model.preprocess.tokenizer) == model.preprocess
    jax.tree.map(np.testing.assert_array_equal, back.variables, model.variables)


def test_on_a_mesh_every_device_holds_its_part(published):
    count = len(jax.devices())
    model = jmm.load(published[0], mesh=MeshShape(data=1, fsdp=count))
    kernel = model.variables["params"]["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * count == kernel.size
    assert_close(model(text=IDS)["logits"], published[1])


# --- PyTorch's own files ---


def pickled(folder, state):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save(state, folder / "pytorch_model.bin")


def test_a_pickle_is_read_only_when_asked_for(published, copied):
    pickled(copied, llama(torch.bfloat16).state_dict())
    with pytest.raises(UserError, match=r"pytorch_model.bin, a pickle file.*--allow-pickle"):
        jmm.load(copied)
    model = jmm.load(copied, allow_pickle=True)
    assert_close(model(text=IDS)["logits"], published[1])
    assert model.origin.dtypes["lm_head.weight"] == ml_dtypes.bfloat16


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code from a pickle was run",))


def test_an_empty_pickle_is_one_sentence(copied):
    pickled(copied, {})
    (copied / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as weights only"):
        jmm.load(copied, allow_pickle=True)


@pytest.mark.parametrize("state", [{"a": Evil()}, [torch.ones(2)], {"a": 3}])
def test_a_pickle_of_anything_but_weights_is_refused(copied, state, capsys):
    pickled(copied, state)
    with pytest.raises(UserError) as caught:
        jmm.load(copied, allow_pickle=True)
    assert "pytorch_model.bin" in str(caught.value) and "\n" not in str(caught.value)
    assert "was run" not in capsys.readouterr().out


# --- bad input ---


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no model: no experiment.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (
            lambda folder: edit(folder, model_type="mamba"),
            "model_type in config.json is 'mamba', which is not supported",
        ),
        (lambda folder: edit(folder, intermediate_size=41), "layers.0.mlp.gate_proj.weight is (40, 24), not (41, 24)"),
        (lambda folder: edit(folder, num_hidden_layers=2), "model.layers.2.mlp.up_proj.weight is left over"),
        (lambda folder: edit(folder, num_hidden_layers=4), "model.layers.3.mlp.up_proj.weight is missing"),
        (lambda folder: edit(folder, quantization_config={"bits": 8}), "has a quantization_config"),
        (lambda folder: edit(folder, architectures=5), "architectures in config.json is 5; it must be a list"),
        (lambda folder: edit(folder, vocab_size=10**15), "cannot be built"),
        (lambda folder: edit(folder, hidden_size=None), "config.json lacks hidden_size"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json cannot be read"),
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "there is no file"),
        (lambda folder: [path.unlink() for path in folder.glob("model*")], "there is no file"),
    ],
)
def test_a_bad_folder_is_one_sentence(copied, spoil, says):
    spoil(copied)
    with pytest.raises(UserError) as caught:
        jmm.load(copied)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^there is no folder .*nowhere$"):
        jmm.load(tmp_path / "nowhere")


def test_a_published_folder_has_no_moving_average(published):
    with pytest.raises(UserError, match="is no workdir of jmm; only those keep a moving average"):
        jmm.load(published[0], average=True)


def test_whole_numbers_are_no_weights(copied):
    """Of a quantised model whose config says nothing of it."""
    tensors = {name: np.asarray(each) for name, each in open_folder(copied).items()}
    tensors["lm_head.weight"] = np.ones(tensors["lm_head.weight"].shape, np.int8)
    for path in copied.glob("model*"):
        path.unlink()
    write_folder(copied, tensors, {}, 10**9)
    with pytest.raises(UserError, match=r": lm_head.weight holds int8, which is no type of weights$"):
        jmm.load(copied)


def test_a_whole_file_comes_before_an_index(published, copied):
    """As transformers has it: the index is left from earlier."""
    jmm.save(jmm.load(published[0]), copied.parent / "whole")
    shutil.copy(copied.parent / "whole" / "model.safetensors", copied)
    for path in copied.glob("model-*"):
        path.unlink()
    assert_close(jmm.load(copied)(text=IDS)["logits"], published[1])


# --- writing ---


def test_fields_that_are_not_ours_go_through_our_own_form(copied):
    edit(copied, pad_token_id=7, something_else={"kept": True})
    jmm.save(jmm.load(copied), copied.parent / "ours", "jmm")
    jmm.save(jmm.load(copied.parent / "ours"), copied.parent / "back", shard_bytes=20_000)
    for name in sorted(path.name for path in copied.iterdir()):
        expected, found = (folder / name for folder in (copied, copied.parent / "back"))
        if name == "config.json":
            assert json.loads(found.read_text()) == json.loads(expected.read_text())
        else:
            assert found.read_bytes() == expected.read_bytes(), name


def test_values_that_a_type_has_not_are_refused(published, tmp_path):
    model = jmm.load(published[0])
    large = model.with_variables(jax.tree.map(lambda leaf: leaf * 1e9, model.variables))
    with pytest.raises(UserError, match=r"holds values beyond those of float16; write another type, such as bfloat16"):
        jmm.save(large, tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="weights cannot be written as int8"):
        jmm.save(large, tmp_path / "out", dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_program_is_not_called_one_of_the_disk(published, tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtyp'"):
        jmm.save(jmm.load(published[0]), tmp_path / "out", dtyp="float16")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(published, tmp_path):
    model = jmm.load(published[0])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="there exists; choose another folder, or take it away"):
        jmm.save(model, tmp_path / "there")
    assert (tmp_path / "there" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["hf", "jmm"])
def test_a_disk_that_fills_leaves_nothing(published, tmp_path, form, monkeypatch):
    model = jmm.load(published[0])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jmm.interop.stored.write_file" if form == "hf" else "jmm.interop.native.write_manifest", full)
    with pytest.raises(UserError, match=r"out cannot be written \(.*No space left on device\); nothing is left of it"):
        jmm.save(model, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form(published, tmp_path):
    with pytest.raises(UserError, match="there is no form 'gguf'; there are hf, jmm"):
        jmm.save(jmm.load(published[0]), tmp_path / "out", "gguf")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "jmm.json").write_text("{}"), "is of version None; this jmm reads 1"),
        (lambda folder: (folder / "jmm.json").write_text('{"version": 1}'), "describes no model"),
        (lambda folder: next((folder / "variables").rglob("d/*")).write_bytes(b"x"), "is damaged ("),
    ],
)
def test_a_damaged_model_of_ours_is_one_sentence(published, tmp_path, spoil, says):
    jmm.save(jmm.load(published[0]), tmp_path / "ours", "jmm")
    spoil(tmp_path / "ours")
    with pytest.raises(UserError) as caught:
        jmm.load(tmp_path / "ours")
    assert says in str(caught.value) and "\n" not in str(caught.value)
