"""Tries arrangements of an experiment on a slice, and keeps those that fit."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jmm.errors import UserError
from jmm.overrides import field_names, override, read_experiment_file
from jmm.planning.chips import Slice, slice_of
from jmm.planning.compiler import Facts
from jmm.planning.plan import Plan
from jmm.training.optimizer import make_optimizer
from jmm.training.state import init_state

TENSOR = (1, 2, 4, 8)
"""Ways in which heads are cut."""
LADDER = (("none", 1), ("dots", 1), ("full", 1), ("full", 2), ("full", 4), ("full", 8))
"""What is computed again and how many micro-batches there are: each step down needs less memory and more time."""

Compile = Callable[[Path, Sequence[str], str, int], Facts]


def search(
    file: Path,
    overrides: Sequence[str],
    topology: str,
    slices: int,
    tries: int,
    compiled: Compile,
    say: Callable[[str], None],
) -> list[tuple[tuple[str, ...], Plan]]:
    """The arrangements that fit, the fastest first, each with the fields that make it. Of every mesh the first step of
    the ladder that fits is taken: the next only costs time.

    Args:
      file: of the experiment.
      overrides: fields that stay as they are.
      topology: where it is to run,
      slices: and on how many of it.
      tries: how many programs are compiled at most.
      compiled: compiles one.
      say: is told of each.

    Raises:
      UserError: the experiment cannot be read, or nothing that was tried fits.
    """
    experiment = override(read_experiment_file(file), list(overrides), f"jmm plan {file}")
    names = [f"--{name}" for name, _ in field_names(experiment) if name.endswith(".remat")]
    # What is computed again can be set, or the model has no such stack.
    ladder = LADDER if names else tuple(dict.fromkeys(("", parts) for _, parts in LADDER))
    found: list[tuple[tuple[str, ...], Plan]] = []
    tried, last = 0, ""
    for mesh in meshes(slice_of(topology, slices), state_bytes(experiment)):
        for remat, parts in ladder:
            if tried == tries:
                break
            tried += 1
            settings = (
                *mesh,
                *(each for name in names for each in (name, remat)),
                "--optimizer.accumulate",
                str(parts),
            )
            try:
                plan = Plan(compiled(file, [*overrides, *settings], topology, slices))
            except UserError as error:  # heads that the axis does not divide, a batch too small for the parts
                last = str(error)
                say(f"{' '.join(settings)}: {error}")
                break
            told = f"{1e3 * plan.step_seconds:.2f} ms" if plan.fits else "does not fit"
            say(f"{' '.join(settings)}: {told}")
            if plan.fits:
                found.append((settings, plan))
                break
            last = f"the last needs {plan.memory_needed / 2**30:.2f} GiB of {plan.memory_there / 2**30:.2f}"
    if not found:
        raise UserError(f"none of the {tried} arrangements that were tried fits {topology}: {last}")
    return sorted(found, key=lambda each: each[1].step_seconds)


def meshes(there: Slice, state: int) -> Iterator[tuple[str, ...]]:
    """Arrangements of the devices that hold the state in half of their memory; those first that cut it least."""
    count, most = there.devices, there.chip.memory // there.chip.devices // 2
    cuts = [(fsdp, tensor) for tensor in TENSOR for fsdp in _divisors(count // tensor) if count % (fsdp * tensor) == 0]
    fitting = [cut for cut in cuts if state / (cut[0] * cut[1]) <= most]
    for fsdp, tensor in sorted(fitting, key=lambda cut: (cut[1], cut[0] * cut[1])):
        data = count // (fsdp * tensor)
        if data % there.count:  # the slices share the batch alone
            continue
        yield ("--mesh.data", str(data), "--mesh.fsdp", str(fsdp), "--mesh.tensor", str(tensor))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0 and each & (each - 1) == 0]


def state_bytes(experiment: Any) -> int:
    """Of parameters, moments and moving average, not cut."""
    module, tx = experiment.model.build(), make_optimizer(experiment.optimizer, experiment.steps)
    state = jax.eval_shape(lambda: init_state(experiment, module, tx))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.replace(key=None)))
