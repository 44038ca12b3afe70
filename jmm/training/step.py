"""One optimizer step as one jitted function, and everything needed to run it on a mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from data_pipelines.mixture import task_names
from jmm.distributed.mesh import check_batch, make_mesh
from jmm.distributed.sharding import batch_sharding, on_mesh, replicated
from jmm.errors import UserError
from jmm.experiment import Experiment
from jmm.protocol import Batch, Loss, Variables
from jmm.training.optimizer import check_expressions, make_optimizer, make_schedule, merge, split
from jmm.training.state import TrainState, abstract_state, init_state

Metrics = dict[str, jax.Array]
"""Figures: a scalar, or the sum and the count [2] of a mean, whose count may be 0."""
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Program:
    """An experiment made ready for a mesh."""

    experiment: Experiment
    module: nn.Module
    mesh: Mesh
    state: TrainState
    """Shapes of the state."""
    shardings: TrainState
    """Where each array of the state lies."""
    step: StepFunction
    """The jitted step; its state argument is donated."""

    def init(self, initial: Callable[[Mesh], Variables] | None = None) -> TrainState:
        """The state before the first step, computed where it lies; `initial` gives other weights for a mesh, with None
        in place of those that `experiment.fresh` names."""
        tx = make_optimizer(self.experiment.optimizer, self.experiment.steps)
        init = jax.jit(lambda: init_state(self.experiment, self.module, tx), out_shardings=self.shardings)
        with on_mesh(self.mesh):
            state: TrainState = init()
        if initial is None:
            return state
        # The random weights go before the others come: the devices need not hold both.
        anew = {
            name: split(tree, self.experiment.fresh)[1]
            for name, tree in {"params": state.params, **state.collections}.items()
        }
        state = state.replace(params=None, collections=None, average=None)
        collections = {name: merge(tree, anew[name]) for name, tree in initial(self.mesh).items()}
        params = jax.device_put(collections.pop("params"), self.shardings.params)
        average = None
        if self.experiment.optimizer.average is not None:
            average = jax.tree.map(jnp.copy, split(params, self.experiment.optimizer.freeze)[0])
        return state.replace(params=params, collections=collections, average=average)

    def place(self, batch: dict[str, Any]) -> Batch:
        """This process's rows of a batch, as global arrays on the mesh."""
        sharding = batch_sharding(self.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, each) for name, each in batch.items()}


def compute_dtype(precision: str) -> Any:
    """The type in which models compute: bfloat16 on accelerators, float32 on CPU, unless told."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)


def build(experiment: Experiment, mesh: Mesh | None = None) -> Program:
    """Checks the experiment against the devices and makes its program; computes and allocates nothing.

    Raises:
      UserError: a mesh or a batch that does not fit, a pattern without a parameter, a model that cannot be built.
    """
    check_fields(experiment)
    mesh = make_mesh(experiment.mesh) if mesh is None else mesh
    check_batch(experiment.batch_size, mesh, experiment.optimizer.accumulate)
    module = experiment.model.build(compute_dtype(experiment.precision))
    tx = make_optimizer(experiment.optimizer, experiment.steps)
    try:
        state, shardings = abstract_state(experiment, module, tx, mesh)
    except (ValueError, ArithmeticError, LookupError) as error:  # a width of 0 divides, an empty table is looked up
        raise UserError(f"the model of {experiment.name} cannot be built: {error}") from error
    step = jax.jit(
        make_step(experiment, module, tx),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Program(experiment, module, mesh, state, shardings, step)


def check_fields(experiment: Experiment) -> None:
    """Raises UserError for a count or a rate that is too low, and for a pattern that is no regular expression."""
    optimizer = experiment.optimizer
    at_least: dict[str, tuple[float, float]] = {
        "steps": (experiment.steps, 1),
        "log_every": (experiment.log_every, 1),
        "evaluate_every": (experiment.evaluate_every, 0),
        "data_threads": (experiment.data_threads, 0),
        "data_workers": (experiment.data_workers, 0),
        "checkpoint.every": (experiment.checkpoint.every, 1),
        "checkpoint.keep": (experiment.checkpoint.keep, 1),
        "optimizer.accumulate": (optimizer.accumulate, 1),
        "optimizer.learning_rate": (optimizer.learning_rate, 0),
    }
    for name, (value, least) in at_least.items():
        if not value >= least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    if not 0 <= experiment.broken_share <= 1:
        raise UserError(f"broken_share is a share, from 0 to 1, not {experiment.broken_share}")
    if experiment.fresh and not experiment.initial:
        raise UserError("fresh says what does not come from initial, and initial is empty: all weights are random")
    check_expressions("fresh", experiment.fresh)
    for field in ("freeze", "decay", "muon"):
        check_expressions(f"optimizer.{field}", getattr(optimizer, field))


def make_step(experiment: Experiment, module: nn.Module, tx: optax.GradientTransformation) -> StepFunction:
    """(state, batch) → (next state, metrics): gradient of the loss, optimizer, moving average."""
    config, tasks = experiment.optimizer, task_names(experiment.data)
    schedule = make_schedule(config, experiment.steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trainable, frozen = split(state.params, config.freeze)
        key = jax.random.fold_in(state.key, state.step)

        def objective(trainable: Any, collections: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Loss]:
            variables = {"params": merge(trainable, frozen), **collections}
            if state.average is not None:
                variables["average"] = merge(state.average, frozen)
            loss = experiment.model.loss(module, variables, batch, {"dropout": key})
            if loss.rows is not None and tasks:
                loss = loss._replace(metrics={**loss.metrics, **by_task(loss.rows, batch["task"], tasks)})
            return loss.value, loss

        gradient, collections, metrics = accumulate(
            jax.grad(objective, has_aux=True), trainable, state.collections, batch, key, config.accumulate
        )
        updates, opt_state = tx.update(gradient, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        metrics |= {"grad_norm": optax.tree.norm(gradient), "learning_rate": schedule(state.step)}
        return state.replace(
            step=state.step + 1,
            params=merge(trainable, frozen),
            collections=collections,
            opt_state=opt_state,
            average=moved_average(state.average, trainable, state.step, config.average),
        ), metrics

    return step


def accumulate(
    gradient_of: Callable[..., tuple[Any, Loss]],
    trainable: Any,
    collections: Any,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[Any, Any, Metrics]:
    """Mean gradient and metrics over `parts` micro-batches, one after another; collections pass through.

    Micro-batch i holds rows i, i + parts, …, so that each lies evenly on all devices.
    """

    def one(collections: Any, each: tuple[Batch, jax.Array]) -> tuple[Any, tuple[Any, Metrics]]:
        gradient, loss = gradient_of(trainable, collections, *each)
        return {**collections, **loss.updates}, (gradient, loss.metrics)

    if parts == 1:
        collections, (gradient, metrics) = one(collections, (batch, key))
        return gradient, collections, dict(metrics)

    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))
    first = one(collections, (jax.tree.map(lambda x: x[0], cut), jax.random.fold_in(key, 0)))

    def add(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], None]:
        collections, total = carry
        part = jax.tree.map(lambda x: x[index], cut)
        collections, each = one(collections, (part, jax.random.fold_in(key, index)))
        return (collections, jax.tree.map(jnp.add, total, each)), None

    (collections, total), _ = jax.lax.scan(add, first, jnp.arange(1, parts))
    gradient, metrics = jax.tree.map(lambda x: x / parts, total)
    return gradient, collections, dict(metrics)


def by_task(rows: jax.Array, task: jax.Array, names: tuple[str, ...]) -> Metrics:
    """`loss@name` for every task: [sum of the losses of its rows, how many they are]."""
    sums = {name: jnp.where(task == index, rows, 0).sum() for index, name in enumerate(names)}
    return {f"loss@{name}": jnp.stack([sums[name], (task == i).sum()]) for i, name in enumerate(names)}


def moved_average(average: Any, params: Any, step: jax.Array, decay: float | None) -> Any:
    """The moving average after a step. Early on it forgets faster, min(decay, (1 + t) / (10 + t)), so that it does
    not remember the initial weights."""
    if decay is None:
        return None
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + (1 - rate) * (p - a), average, params)
