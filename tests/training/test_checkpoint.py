"""Checkpoints: any mesh, damage, what is kept, a full disk."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jmm
from jmm.errors import UserError
from jmm.experiment import Checkpoint, MeshShape
from jmm.training.checkpoint import Checkpoints
from jmm.training.loop import train
from tests.training.runs import TINY, command, finished, program, run_steps, tiny


def saved(folder, made, steps=2):
    state, _ = run_steps(made, steps)
    checkpoints = Checkpoints(folder, Checkpoint())
    checkpoints.save(state, 32, {})
    checkpoints.close()
    return state


def restored(folder, made, say=lambda _: None):
    checkpoints = Checkpoints(folder, Checkpoint())
    found = checkpoints.restore(made.state, made.shardings, say)
    checkpoints.close()
    return found


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_eight_devices_restore_on_four_on_one_and_on_another_mesh(tmp_path):
    state = saved(tmp_path, program(tiny(), MeshShape(data=2, fsdp=2, tensor=2), 8))
    for shape, devices in [
        (MeshShape(data=1, fsdp=2, tensor=2), 4),
        (MeshShape(), 1),
        (MeshShape(data=1, fsdp=8), 8),
    ]:
        made = program(tiny(), shape, devices)
        found, next_example = restored(tmp_path, made)
        assert next_example == 32
        assert_same(found, state)
        placed = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, found, made.shardings)
        assert all(jax.tree.leaves(placed))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny(steps=8), folder)
    return folder


def flip(folder):
    """Turns one bit in the middle of the largest file of the parameters."""
    path = max((p for p in (folder / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_falls_back_to_the_checkpoint_before(tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    flip(run / "checkpoints" / "8")
    said = []
    state, _ = restored(run / "checkpoints", program(tiny(steps=8), MeshShape(), 1), said.append)
    assert int(state.step) == 4
    assert len(said) == 1
    assert "checkpoint of step 8 is damaged" in said[0]
    assert "going on from step 4" in said[0]
    assert (run / "damaged" / "8").is_dir()
    with pytest.warns(UserWarning, match="step 8 is damaged"):
        flip(shutil.copytree(finished_run, tmp_path / "other") / "checkpoints" / "8")
        jmm.load(tmp_path / "other")


def test_one_flipped_bit_in_any_file_is_found(tmp_path, finished_run):
    made, whole = program(tiny(steps=8), MeshShape(), 1), finished_run / "checkpoints"
    names = [path.relative_to(whole) for path in (whole / "8").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(names) > 10 and Path("8/manifest.json") in names
    for place, name in enumerate(names):
        run = shutil.copytree(finished_run, tmp_path / str(place))
        path = run / "checkpoints" / name
        data = bytearray(path.read_bytes())
        data[place * 7919 % len(data)] ^= 1 << place % 8
        path.write_bytes(data)
        said = []
        state, _ = restored(run / "checkpoints", made, said.append)
        assert int(state.step) == 4, name
        assert "checkpoint of step 8 is damaged" in said[0]
        shutil.rmtree(run)


def test_a_missing_file_is_damage_and_nothing_is_moved_when_nothing_is_left(tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    for step in ("4", "8"):
        shutil.rmtree(run / "checkpoints" / step / "params" / "d")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; step 8"):
        restored(run / "checkpoints", program(tiny(steps=8), MeshShape(), 1))
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "8"]


def test_newest_and_best_are_kept(tmp_path):
    made = program(tiny(), MeshShape(), 1)
    state, _ = run_steps(made, 1)
    checkpoints = Checkpoints(tmp_path, Checkpoint(keep=2, best="eval/score"))
    for step, score in enumerate([0.2, 0.9, 0.4, 0.3, None], start=1):
        metrics = {} if score is None else {"eval/score": score}
        checkpoints.save(state.replace(step=jax.numpy.int32(step)), 0, metrics)
    checkpoints.close()
    kept = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == [2, 4, 5]


def test_every_file_of_a_checkpoint_is_in_its_manifest(finished_run):
    folder = finished_run / "checkpoints" / "8"
    listed = json.loads((folder / "manifest.json").read_text())
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(listed) == there


def test_a_full_disk_stops_training_and_keeps_the_last_good_checkpoint(tmp_path):
    arguments = ("train", str(TINY), "--workdir", str(tmp_path), "--evaluate-every", "0")
    assert finished(command(*arguments, "--steps", "12", "--seed", "3"))[0] == 0
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    # No file may grow beyond 16 kB: the disk is full, as far as this process can tell.
    code, _, err = finished(command(*arguments, "--seed", "3", before="ulimit -f 16"))
    assert code == 1, err
    last = err.strip().splitlines()[-1]
    assert "the checkpoint of step 12 could not be saved" in last
    assert "step 8 is the last good one" in last
    assert "Traceback" not in err
    assert finished(command(*arguments, "--seed", "3"))[0] == 0
