"""AdamW, and Muon for chosen matrices, with schedule, clipping and decay mask from the experiment; freezing by path."""

import re
from typing import Any

import jax
import optax

from jmm.distributed.sharding import path_name
from jmm.errors import UserError
from jmm.experiment import Optimizer
from jmm.training.muon import move_by_muon


def make_schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then constant, linear or cosine to `final_fraction` of the rate at the last step.

    Raises:
      UserError: a warm-up longer than the run, or negative.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if not 0 <= warmup <= steps:
        raise UserError(f"optimizer.warmup_steps must lie between 0 and the {steps} steps of the run, not {warmup}")
    left = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, left),
        "cosine": optax.cosine_decay_schedule(peak, left, config.final_fraction),
    }[config.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clip, AdamW or Muon, decay, schedule. Its state mirrors the trainable parameters."""

    def decays(params: Any) -> Any:
        return matches(params, config.decay)

    def which(params: Any) -> Any:
        return jax.tree.map(lambda muon: "muon" if muon else "adam", matches(params, config.muon))

    move = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.muon:
        move = optax.partition({"muon": move_by_muon(), "adam": move}, which)
    decay = optax.add_decayed_weights(config.weight_decay, decays)
    # A chain within a chain: so optax.adamw nests its state, and checkpoints of runs without Muon hold it.
    moves = optax.chain(move, decay, optax.scale_by_learning_rate(make_schedule(config, steps)))
    return moves if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), moves)


def matches(params: Any, patterns: tuple[str, ...]) -> Any:
    """A pytree of bools: true where one of the patterns is found in the parameter's path."""

    def found(path: tuple[Any, ...], _: Any) -> bool:
        return any(re.search(pattern, path_name(path)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(found, params)


def check_expressions(field: str, patterns: tuple[str, ...]) -> None:
    """Raises UserError for a pattern that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{field}: {pattern!r} is no regular expression ({error})") from error


def check_patterns(params: Any, field: str, patterns: tuple[str, ...]) -> None:
    """Raises UserError for a pattern that is no regular expression, or is found in no path."""
    check_expressions(field, patterns)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f"{field}: {pattern!r} matches no parameter; there are {paths[0]}, {paths[-1]} …")


def check_kernels(params: Any, field: str, patterns: tuple[str, ...]) -> None:
    """Raises UserError where one of the patterns is found in the path of a parameter that is no kernel."""
    for path, found in jax.tree_util.tree_leaves_with_path(matches(params, patterns)):
        if found and not path_name(path).endswith("kernel"):
            raise UserError(
                f"{field} is for kernels, and matches {path_name(path)}; 'blocks/.*kernel$' matches no other"
            )


def split(params: Any, freeze: tuple[str, ...]) -> tuple[Any, Any]:
    """(trainable, frozen): two trees of the same structure, each with None where the other has an array."""
    frozen = matches(params, freeze)
    keep = jax.tree.map(lambda p, f: None if f else p, params, frozen)
    rest = jax.tree.map(lambda p, f: p if f else None, params, frozen)
    return keep, rest


def merge(trainable: Any, frozen: Any) -> Any:
    """Undoes `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)
