"""The optimizer: its rates by hand, what decays, what is frozen, and one step against torch."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.quickstart import experiment
from jmm.distributed.mesh import make_mesh
from jmm.distributed.sharding import on_mesh, tree_shardings
from jmm.errors import UserError
from jmm.experiment import MeshShape, Optimizer
from jmm.training.optimizer import check_patterns, make_optimizer, make_schedule, merge, split
from jmm.training.step import build

PARAMS = {
    "image": {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3) - 2, "bias": jnp.ones(3)}},
    "text": {"norm": {"scale": jnp.ones(4)}, "embedding": {"embedding": jnp.full((5, 2), 2.0)}},
    "logit_scale": jnp.float32(3.0),
}


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (Optimizer(1.0, "constant"), {0: 1.0, 50: 1.0, 100: 1.0}),
        (Optimizer(1.0, "constant", warmup_steps=20), {0: 0.0, 5: 0.25, 20: 1.0, 100: 1.0}),
        (Optimizer(1.0, "linear", 20, 0.1), {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.55, 100: 0.1, 120: 0.1}),
        (Optimizer(2.0, "cosine", 20, 0.1), {10: 1.0, 20: 2.0, 60: 1.1, 100: 0.2, 120: 0.2}),
        (Optimizer(1.0, "cosine"), {0: 1.0, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0.0}),
        (Optimizer(1.0, "cosine", 100), {50: 0.5, 99: 0.99, 100: 1.0}),
    ],
)
def test_schedule_by_hand(config, rates):
    schedule = make_schedule(config, 100)
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step


@pytest.mark.parametrize("warmup", [101, -1])
def test_a_warmup_that_does_not_fit_is_refused(warmup):
    with pytest.raises(UserError, match=rf"optimizer\.warmup_steps.*{warmup}"):
        make_schedule(Optimizer(warmup_steps=warmup), 100)


def updates(config, gradient, params=PARAMS):
    tx = make_optimizer(config, 100)
    found, _ = tx.update(gradient, tx.init(params), params)
    return found


def test_only_kernels_decay():
    config = Optimizer(0.5, "constant", weight_decay=0.1)
    found = updates(config, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(found["image"]["dense"]["kernel"], -0.05 * PARAMS["image"]["dense"]["kernel"])
    found["image"]["dense"].pop("kernel")
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


def test_decay_follows_its_patterns():
    config = Optimizer(0.5, "constant", weight_decay=0.1, decay=("^text/", "scale$"))
    found = updates(config, jax.tree.map(jnp.zeros_like, PARAMS))
    moved = {key for key, branch in found.items() if any((leaf != 0).any() for leaf in jax.tree.leaves(branch))}
    assert moved == {"text", "logit_scale"}


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (100.0, 5.0), (None, 5.0)])
def test_clip_bounds_the_global_norm(clip, expected):
    params = {"a": jnp.float32(0), "b": jnp.float32(0)}
    gradient = {"a": jnp.float32(3), "b": jnp.float32(4)}
    # Adam forgets the scale of a gradient, its first moment after one step does not.
    tx = make_optimizer(Optimizer(b1=0.75, clip_norm=clip), 100)
    _, state = tx.update(gradient, tx.init(params), params)
    (adam,) = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
    assert math.hypot(*adam.mu.values()) == pytest.approx(0.25 * expected)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["image/", "kernel$", "text", "^logit_scale$", "never"]), unique=True))
def test_merge_undoes_split(patterns):
    trainable, frozen = split(PARAMS, tuple(patterns))
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(PARAMS))
    merged = merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(PARAMS), strict=True))


def test_split_by_hand():
    trainable, frozen = split(PARAMS, ("^image/", "scale$"))
    assert trainable["image"] == {"dense": {"kernel": None, "bias": None}}
    assert frozen["text"] == {
        "norm": {"scale": PARAMS["text"]["norm"]["scale"]},
        "embedding": {"embedding": None},
    }


def with_optimizer(**settings):
    base = experiment()
    return replace(base, optimizer=replace(base.optimizer, **settings), mesh=MeshShape(fsdp=2))


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_frozen_parameters_take_no_optimizer_memory():
    whole, part = build(with_optimizer()).state, build(with_optimizer(freeze=("^image/",))).state
    frozen = bytes_of(whole.params["image"])
    assert bytes_of(part.params) == bytes_of(whole.params)
    assert bytes_of(part.average) == bytes_of(whole.average) - frozen
    assert bytes_of(part.opt_state) == bytes_of(whole.opt_state) - 2 * frozen
    assert bytes_of(part.opt_state) < 2 * (bytes_of(part.params) - frozen) + 64


@pytest.mark.parametrize("field", ["freeze", "decay", "muon"])
@pytest.mark.parametrize(("pattern", "message"), [("imagee/", "matches no parameter"), ("(", "no regular expression")])
def test_bad_patterns_are_named(field, pattern, message):
    with pytest.raises(UserError, match=rf"optimizer\.{field}: .*{message}"):
        check_patterns(PARAMS, f"optimizer.{field}", (pattern,))
    with pytest.raises(UserError, match=rf"optimizer\.{field}: .*{message}"):
        build(with_optimizer(**{field: (pattern,)}))


def test_everything_may_be_frozen_but_one():
    state = build(with_optimizer(freeze=("^image", "^text"))).state
    assert bytes_of(state.average) == 4


@pytest.mark.parametrize("accumulate", [0, -1])
def test_accumulate_must_be_positive(accumulate):
    with pytest.raises(UserError, match=r"optimizer\.accumulate must be at least 1"):
        build(with_optimizer(accumulate=accumulate))


def test_steps_equal_torch_adamw():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 3)).astype(np.float32)
    gradients = rng.standard_normal((3, 4, 3)).astype(np.float32)

    theirs = torch.nn.Parameter(torch.tensor(start))
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    adamw = torch.optim.AdamW([theirs], **settings)

    config = Optimizer(0.01, "constant", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.2, clip_norm=None)
    tx = make_optimizer(config, 100)
    ours = {"kernel": jnp.asarray(start)}
    state = tx.init(ours)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        adamw.step()
        moves, state = tx.update({"kernel": jnp.asarray(gradient)}, state, ours)
        ours = optax.apply_updates(ours, moves)
        # float32 rounding of values of at most 3
        np.testing.assert_allclose(ours["kernel"], theirs.detach().numpy(), rtol=0, atol=1e-6)


def kernels(rng):
    """A stack of two blocks, as flax keeps it, and the matrix that each kernel of the second block is."""
    shapes = {"query": (2, 6, 2, 4), "out": (2, 2, 4, 6), "up": (2, 6, 12)}
    found = {name: {"kernel": rng.standard_normal(shape).astype(np.float32)} for name, shape in shapes.items()}
    matrices = {"query": (6, 8), "out": (8, 6), "up": (6, 12)}
    return {"blocks": found}, lambda tree, name: np.asarray(tree["blocks"][name]["kernel"][1]).reshape(matrices[name])


MUON = ("blocks/.*kernel$",)


@pytest.mark.parametrize("name", ["query", "out", "up"])
def test_muon_turns_the_singular_values_of_each_kernel_to_about_one(name):
    params, matrix = kernels(np.random.default_rng(0))
    config = Optimizer(0.5, "constant", muon=MUON, clip_norm=None)
    update = matrix(updates(config, params, params), name) / (-0.5 * 0.2 * math.sqrt(max(matrix(params, name).shape)))
    left, _, right = np.linalg.svd(matrix(params, name), full_matrices=False)
    turned = left.T @ update @ right.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-5)
    assert ((np.diag(turned) > 0.6) & (np.diag(turned) < 1.3)).all(), np.diag(turned)


def test_steps_equal_torch_muon(monkeypatch):
    # They compute in bfloat16, whatever they are given.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    rng = np.random.default_rng(0)
    params, matrix = kernels(rng)
    theirs = {name: torch.nn.Parameter(torch.tensor(matrix(params, name))) for name in params["blocks"]}
    muon = torch.optim.Muon(theirs.values(), lr=0.01, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    tx = make_optimizer(Optimizer(0.01, "constant", weight_decay=0.2, muon=MUON, clip_norm=None), 1000)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(5):
        gradient = kernels(rng)[0]
        before = {name: each.detach().clone().numpy() for name, each in theirs.items()}
        for name, each in theirs.items():
            each.grad = torch.tensor(matrix(gradient, name))
        muon.step()
        for name, stack in params["blocks"].items():
            stack["kernel"][1] = before[name].reshape(stack["kernel"].shape[1:])
        moves, state = update(gradient, state, params)
        for name, each in theirs.items():
            moved = each.detach().numpy() - before[name]
            np.testing.assert_allclose(matrix(moves, name), moved, rtol=0, atol=1e-4 * np.abs(moved).max())


def test_muon_takes_the_same_steps_on_a_mesh():
    """Two matrices of a stack, and one of the same shape that lies crosswise, among eight devices."""
    params, _ = kernels(np.random.default_rng(0))
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    tx = make_optimizer(Optimizer(muon=MUON), 100)
    alone, _ = jax.jit(tx.update)(params, tx.init(params), params)
    with on_mesh(mesh):
        cut = jax.device_put(params, tree_shardings(params, mesh))
        there, _ = jax.jit(tx.update)(cut, tx.init(cut), cut)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), there, alone)


def test_muon_leaves_the_rest_to_adamw():
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    alone, mixed = (updates(Optimizer(muon=muon), gradient) for muon in ((), ("dense/kernel$",)))
    assert not np.allclose(alone["image"]["dense"].pop("kernel"), mixed["image"]["dense"].pop("kernel"))
    jax.tree.map(np.testing.assert_array_equal, alone, mixed)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_state_without_muon_is_that_of_adamw(clip):
    """In its structure too: checkpoints hold it by that."""
    adamw = optax.adamw(1e-3, mask=lambda params: jax.tree.map(lambda _: True, params))
    expected = adamw if clip is None else optax.chain(optax.clip_by_global_norm(clip), adamw)
    found = make_optimizer(Optimizer(schedule="constant", clip_norm=clip), 100).init(PARAMS)

    def names(state):
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]

    kept = [name for name in names(found) if not name.endswith(".count")]
    assert kept == [name for name in names(expected.init(PARAMS)) if not name.endswith(".count")]


def test_muon_moves_kernels_only():
    with pytest.raises(UserError, match=r"optimizer\.muon is for kernels, and matches .*(scale|bias|embedding)"):
        build(with_optimizer(muon=("^text/",)))
