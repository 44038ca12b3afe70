"""A dataset's pictures as codes: written once, read by the second stage, and what is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.codes import Codes, packed, unpacked
from data_pipelines.digits import Digits
from data_pipelines.mixture import Mixture, Part
from data_pipelines.pipeline import training_batches
from data_pipelines.scenes import Scenes
from data_pipelines.stream import Stream
from jmm.cli import main
from jmm.distributed.mesh import make_mesh
from jmm.errors import UserError
from jmm.experiment import MeshShape
from jmm.interop.convert import save
from jmm.interop.encode import encode
from jmm.interop.model import load
from jmm.model import Model
from jmm.models import vit
from jmm.models.vqgan import Config, GridConfig
from jmm.parts.transformer import TransformerConfig
from jmm.training.workdir import from_json, to_json

DATA = Scenes("caption", image_size=64, examples=9, held_out=5)
TOKENIZER = Config((32, 32), 3, GridConfig(4, (1, 2, 2), 1, (2,), 6, 2), 40, 6, critic=None)


def model_of(config, data):
    module, spec = config.build(), config.batch_spec(1)["image"]
    variables = module.init(jax.random.key(0), image=jnp.zeros(spec.shape))
    preprocess = replace(data.preprocessor(), image_size=spec.shape[1:3])
    return Model(config, module, variables, preprocess, make_mesh(MeshShape(), jax.devices()[:1]), batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return model_of(TOKENIZER, DATA)


def test_what_is_written_is_what_the_tokenizer_gives(tokenizer, tmp_path):
    assert encode(tokenizer, DATA, tmp_path / "codes", count=7) == {"train": 7, "held_out": 5}
    second = Codes(str(tmp_path / "codes"), DATA)
    for split, count in (("train", 7), ("held_out", 5)):
        source, first = second.source(split), DATA.source(split)
        assert len(source) == count
        images = [first[i]["image"] for i in range(count)]
        codes = tokenizer(**tokenizer.preprocess(images=images))["codes"]
        for i in range(count):
            assert source[i]["caption"] == first[i]["caption"]
            np.testing.assert_array_equal(source[i]["codes"], codes[i])
        with pytest.raises(IndexError):
            source[count]
    assert len(np.unique(codes)) > 3
    described = json.loads((tmp_path / "codes" / "codes.json").read_text())
    assert described["num_codes"] == 40 and described["grid"] == [8, 8]
    kept = load(second.tokenizer)
    np.testing.assert_array_equal(kept(**kept.preprocess(images=images))["codes"], codes)
    again = tmp_path / "again"
    encode(tokenizer, Mixture((Part("tell", Stream(second, "tell")),)), again, count=2)
    np.testing.assert_array_equal(
        Codes(str(again), DATA).source("train")[1]["codes"], second.source("train")[1]["codes"]
    )


def test_batches_of_the_second_stage(tokenizer, tmp_path):
    encode(tokenizer, DATA, tmp_path / "codes")
    second = Codes(str(tmp_path / "codes"), DATA)
    with training_batches(second, 4, 0, threads=0) as batches:
        batch = next(batches)
    assert {name: (each.shape, each.dtype) for name, each in batch.items()} == {
        "codes": ((4, 8, 8), np.int32),
        "text": ((4, 48), np.int32),
        "text_mask": ((4, 48), np.bool_),
    }
    assert from_json(json.loads(json.dumps(to_json(second))), "data") == second


def test_records():
    example = {"prompt": "wo?", "answer": "hier\nund da", "answers": ("hier",), "label": 3, "scene": object()}
    codes = np.array([[0, 65_535, 10], [7, 256, 2]])
    found = unpacked(packed(example, codes), (2, 3))
    np.testing.assert_array_equal(found.pop("codes"), codes)
    assert found == {"prompt": "wo?", "answer": "hier\nund da", "answers": ["hier"], "label": 3}
    with pytest.raises(UserError, match="codes must lie from 0 to 65535, not at 65536"):
        packed({}, np.array([[65_536]]))
    for record in (b"{}\n12", b"no\n" + bytes(12), b""):
        with pytest.raises(UserError, match="no example with 2×3 codes"):
            unpacked(record, (2, 3))


def test_what_cannot_be_encoded_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="an example has no picture that could be encoded"):
        encode(tokenizer, replace(DATA, task="text_alone"), tmp_path / "new")
    assert not list(tmp_path.iterdir()), "nothing is left"
    stack = TransformerConfig(8, 1, 1, 8)
    reader = model_of(vit.Config(vit.ImageTower(stack, (16, 16), 4), num_classes=3), DATA)
    with pytest.raises(UserError, match="makes no codes of images; a tokenizer does"):
        encode(reader, DATA, tmp_path / "new")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists"):
        encode(tokenizer, DATA, tmp_path / "there")


def test_torn_folders_are_named(tokenizer, tmp_path):
    folder = tmp_path / "codes"
    with pytest.raises(UserError, match=r"is no folder of codes: it holds no readable codes\.json"):
        Codes(str(folder), DATA).source("train")
    encode(tokenizer, DATA, folder)
    whole = (folder / "train.array_record").read_bytes()
    (folder / "train.array_record").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train\.array_record is (no file of records, or is )?torn"):
        Codes(str(folder), DATA).source("train")
    (folder / "train.array_record").unlink()
    with pytest.raises(UserError, match=r"holds no train\.array_record"):
        Codes(str(folder), DATA).source("train")
    (folder / "codes.json").write_text('{"grid": [8]}')
    with pytest.raises(UserError, match=r"codes\.json is none that jmm encode wrote"):
        Codes(str(folder), DATA).source("held_out")


def test_the_command(tmp_path, capsys):
    data = Digits(image_size=16)
    model = model_of(replace(TOKENIZER, image_size=(16, 16), channels=1), data)
    save(model, tmp_path / "tokenizer", "jmm")
    file = "experiments/vit_digits.py"
    given = ["encode", str(tmp_path / "tokenizer"), file, "--to", str(tmp_path / "codes"), "--count", "6", "--json"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == {"train": 6, "held_out": 360}
    assert Codes(str(tmp_path / "codes"), data).source("train")[5]["label"] in range(10)
    assert main(given) == 1
    assert "exists; choose another folder" in capsys.readouterr().err
