"""Files of tensors: read and written as the safetensors package does, byte for byte, and refused when torn."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jmm.errors import UserError
from jmm.interop.stored import open_file, open_folder, plan_shards, write_file, write_folder


def tensors():
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "a.weight": rng.standard_normal((4, 3)).astype(np.float32),
        "scale": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "half": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
        "count": np.array([3], np.int64),
        "ä": np.array([True, False]),
    }


def test_a_file_of_the_package_is_read(tmp_path):
    save_file(tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    stored = open_file(tmp_path / "x.safetensors")
    assert stored.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert stored[name].shape == expected.shape
        assert stored[name].dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(stored[name]), expected, err_msg=name)


def test_the_package_reads_what_is_written(tmp_path):
    write_file(tmp_path / "x.safetensors", tensors(), {})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_file_equals_that_of_the_package_to_the_last_byte(tmp_path):
    held = {name: each for name, each in tensors().items() if each.dtype in (np.float32, np.int64)}
    save_file(held, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_file(tmp_path / "ours.safetensors", held, {})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_types_are_those_asked_for(tmp_path):
    held = {"a": np.array([1.0, 2.5], np.float32), "b": np.array([3], np.int64)}
    write_file(tmp_path / "x.safetensors", held, {"a": np.dtype(ml_dtypes.bfloat16)})
    stored = open_file(tmp_path / "x.safetensors")
    assert stored["a"].dtype == ml_dtypes.bfloat16
    assert stored["b"].dtype == np.int64
    np.testing.assert_array_equal(np.asarray(stored["a"]).astype(np.float32), held["a"])


def header(text):
    return struct.pack("<Q", len(text)) + text.encode()


ENTRY = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has 0 bytes"),
        (b"abc", "it has 3 bytes"),
        (b"\x80\x04" + b"pickle..." * 3, "its header would have"),
        (header("{")[:-1], "its header would have 1 bytes"),
        (header("not json"), "Expecting value"),
        (header("[1, 2]"), "items"),
        (header(ENTRY) + b"\0" * 7, "it should have 77 bytes and has 76"),
        (header(ENTRY) + b"\0" * 9, "it should have 77 bytes and has 78"),
        (header(ENTRY.replace("[2]", "[3]")) + b"\0" * 8, "the place of a does not fit its shape"),
        (header(ENTRY.replace("[2]", "[-2]")) + b"\0" * 8, "the place of a does not fit its shape"),
        (header(ENTRY.replace("[2]", "[-1, -2]")) + b"\0" * 8, "the place of a does not fit its shape"),
        (header(ENTRY.replace("[0, 8]", "[8, 16]")) + b"\0" * 16, "the place of a does not fit its shape"),
        (header(ENTRY.replace("shape", "form")) + b"\0" * 8, "KeyError 'shape'"),
        (header(ENTRY.replace("[2]", '"2"')) + b"\0" * 8, "not a whole"),
        (header('{"a": 3}'), "not a whole"),
        (struct.pack("<Q", 2**63) + b"{}", "its header would have"),
    ],
)
def test_a_torn_file_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a whole safetensors file (") and message.endswith("; fetch it again")
    assert says in message and "\n" not in message


def test_a_type_that_is_not_supported(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header(ENTRY.replace("F32", "F4")) + b"\0" * 8)
    with pytest.raises(UserError, match=r"^a in .*x.safetensors is of type F4, which is not supported$"):
        open_file(path)


def test_a_file_that_shrinks_meanwhile(tmp_path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"a": np.ones(9, np.float32)}, {})
    stored = open_file(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read any more"):
        np.asarray(stored)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"^there is no file .*x.safetensors$"):
        open_file(tmp_path / "x.safetensors")


# --- shards ---


def test_shards_are_filled_in_order():
    sizes = {"a": 3, "b": 4, "c": 12, "d": 1, "e": 9, "f": 1}
    assert plan_shards(sizes, 10) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert plan_shards(sizes, 1000) == [list(sizes)]


def test_a_folder_of_shards(tmp_path):
    held = {f"layer.{i}": np.full((4, 4), i, np.float32) for i in range(7)}
    write_folder(tmp_path, held, {}, 150)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)),
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 112, "total_size": 448}
    found = open_folder(tmp_path)
    assert found.keys() == held.keys()
    for name, expected in held.items():
        np.testing.assert_array_equal(np.asarray(found[name]), expected)


def change(index, **more):
    parsed = json.loads(index.read_text())
    parsed["weight_map"] |= more
    index.write_text(json.dumps(parsed))


def forget(index):
    parsed = json.loads(index.read_text())
    del parsed["weight_map"]["b"]
    index.write_text(json.dumps(parsed))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda index: index.write_text("{"), "is no index of shards"),
        (lambda index: index.write_text("{}"), "is no index of shards"),
        (lambda index: index.write_text('{"weight_map": {"a": 3}}'), "is no list of files by tensor"),
        (lambda index: change(index, more="../model.safetensors"), "'../model.safetensors', which does not lie beside"),
        (lambda index: change(index, more="/etc/passwd"), "'/etc/passwd', which does not lie beside it"),
        (lambda index: change(index, more="model-00001-of-00002.safetensors"), "more is not in model-00001"),
        (lambda index: change(index, more="other.safetensors"), "there is no file"),
        (lambda index: change(index, c="model-00001-of-00002.safetensors"), "c is not in model-00001-of-00002"),
        (forget, "b of model-00001-of-00002.safetensors is not listed"),
    ],
)
def test_a_bad_index_is_one_sentence(tmp_path, spoil, says):
    write_folder(tmp_path, {name: np.ones(3, np.float32) for name in "abc"}, {}, 24)
    spoil(tmp_path / "model.safetensors.index.json")
    with pytest.raises(UserError) as caught:
        open_folder(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)
