"""Everything that changes while training."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jmm.distributed.sharding import replicated, tree_shardings
from jmm.experiment import Experiment
from jmm.protocol import inputs_of
from jmm.training.optimizer import check_kernels, check_patterns, merge, split


class TrainState(struct.PyTreeNode):
    """Parameters, what the optimizer remembers, and what else moves with them.

    A pytree of arrays, or, in their place, of their shapes, their shardings or whatever a `tree.map` makes.
    """

    step: Any
    """Steps done, int32."""
    params: Any
    """All parameters, float32."""
    collections: Any
    """Linen collections beside the parameters: running statistics, codebook averages."""
    opt_state: Any
    """Of the trainable parameters only."""
    average: Any
    """Moving average of the trainable parameters, or None."""
    key: Any
    """Root of every random number of the run."""

    def variables(self, freeze: tuple[str, ...]) -> dict[str, Any]:
        """What a forward pass reads: the moving average where there is one, else the parameters."""
        params = self.params
        if self.average is not None:
            params = merge(self.average, split(self.params, freeze)[1])
        return {"params": params, **self.collections}


def init_state(experiment: Experiment, module: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step; a pure function of the experiment, made for `jit` and `eval_shape`."""
    key = jax.random.key(experiment.seed)
    spec = experiment.model.batch_spec(1)
    batch = {name: jnp.zeros(each.shape, each.dtype) for name, each in spec.items()}
    collections = dict(module.init(jax.random.fold_in(key, 0), **inputs_of(module, batch)))
    params = collections.pop("params")
    trainable, _ = split(params, experiment.optimizer.freeze)
    average = None if experiment.optimizer.average is None else jax.tree.map(jnp.copy, trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        opt_state=tx.init(trainable),
        average=average,
        key=jax.random.fold_in(key, 1),
    )


def abstract_state(
    experiment: Experiment, module: Any, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the state, without computing anything.

    Raises:
      UserError: a pattern that no parameter matches.
    """
    state = jax.eval_shape(lambda: init_state(experiment, module, tx))
    for field in ("freeze", "decay", "muon"):
        check_patterns(state.params, f"optimizer.{field}", getattr(experiment.optimizer, field))
    check_kernels(state.params, "optimizer.muon", experiment.optimizer.muon)
    check_patterns(state.params, "fresh", experiment.fresh)
    shardings = tree_shardings(state, mesh).replace(step=replicated(mesh), key=replicated(mesh))
    return state, shardings
