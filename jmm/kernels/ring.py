"""Attention over a sequence that is cut among devices: keys and values travel round, queries stay.

Ring attention (Liu et al. 2023, section 3): every device holds its part of the queries and, for one step at a time,
one part of the keys and values. The next part is on its way while the present one is computed; what the parts give is
joined by the weight (`lse`) of each. In the backward pass the gradients of keys and values travel with them, home.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jmm.kernels.core import FLOOR, Core, Gradients, Operands, Problem


@dataclass(frozen=True)
class Ring:
    """A core that works on a sequence cut along a mesh axis; to be called inside `jax.shard_map`."""

    core: Core
    """Computes one part."""
    axis: tuple[str, ...]
    """The mesh axes that cut the queries."""
    hops: int
    """Parts of the keys; 1 if every device holds them all."""

    def forward(
        self, problem: Problem, operands: Operands, offsets: Sequence[Any] = (0, 0)
    ) -> tuple[Float[Array, "B H Q D"], Float[Array, "B H Q"]]:
        """As `Core.forward`; `operands` are this device's part, but the bias has the columns of all keys."""
        travelling = (operands.k, operands.v, operands.k_labels)
        out = jnp.zeros(operands.q.shape, jnp.float32)
        lse = jnp.full(operands.q.shape[:-1], FLOOR, jnp.float32)

        def step(carry: tuple[Any, ...], hop: Any) -> tuple[jax.Array, jax.Array]:
            (k, v, k_labels), out, lse = carry
            part, places = self._part(operands, k, v, k_labels, hop, offsets)
            return _joined(out, lse, *self.core.forward(problem, part, places))

        def moving_step(carry: tuple[Any, ...], hop: Any) -> tuple[tuple[Any, ...], None]:
            arriving = self._moved(carry[0])
            return (arriving, *step(carry, hop)), None

        carry, _ = lax.scan(moving_step, (travelling, out, lse), jnp.arange(self.hops - 1))
        out, lse = step(carry, self.hops - 1)
        return out.astype(operands.v.dtype), lse

    def backward(
        self,
        problem: Problem,
        operands: Operands,
        lse: Float[Array, "B H Q"],
        delta: Float[Array, "B H Q"],
        d_out: Float[Array, "B H Q D"],
        offsets: Sequence[Any] = (0, 0),
    ) -> Gradients:
        """As `Core.backward`."""
        travelling = (operands.k, operands.v, operands.k_labels)
        sums = tuple(
            None if each is None else jnp.zeros(each.shape, jnp.float32)
            for each in (operands.q, operands.bias, operands.k, operands.v)
        )

        def step(carry: tuple[Any, ...], hop: Any) -> tuple[Any, ...]:
            (k, v, k_labels), (dq, dbias, dk, dv) = carry
            part, places = self._part(operands, k, v, k_labels, hop, offsets)
            found = self.core.backward(problem, part, lse, delta, d_out, places)
            if dbias is not None and found.bias is not None:
                columns = self._source(hop) * k.shape[2]
                dbias = lax.dynamic_update_slice_in_dim(dbias, found.bias.astype(jnp.float32), columns, 3)
            home = self._moved((dk + found.k, dv + found.v))
            return dq + found.q, dbias, *home

        def moving_step(carry: tuple[Any, ...], hop: Any) -> tuple[tuple[Any, ...], None]:
            arriving = self._moved(carry[0])
            return (arriving, step(carry, hop)), None

        carry, _ = lax.scan(moving_step, (travelling, sums), jnp.arange(self.hops - 1))
        dq, dbias, dk, dv = step(carry, self.hops - 1)
        return Gradients(dq, dk, dv, dbias)

    def _source(self, hop: Any) -> jax.Array:
        """The device whose keys are here after so many hops."""
        return (lax.axis_index(self.axis) - hop) % self.hops

    def _part(
        self, operands: Operands, k: jax.Array, v: jax.Array, k_labels: Any, hop: Any, offsets: Sequence[Any]
    ) -> tuple[Operands, tuple[Any, Any]]:
        """The operands of one step and the positions of its first query and key."""
        source, length, bias = self._source(hop), k.shape[2], operands.bias
        if bias is not None:
            bias = lax.dynamic_slice_in_dim(bias, source * length, length, 3)
        here = lax.axis_index(self.axis) * operands.q.shape[2]
        return operands._replace(k=k, v=v, bias=bias, k_labels=k_labels), (
            here + offsets[0],
            source * length + offsets[1],
        )

    def _moved(self, arrays: Any) -> Any:
        """Hands arrays to the next device; nothing moves where every device holds all."""
        if self.hops == 1:
            return arrays
        to_next = [(i, (i + 1) % self.hops) for i in range(self.hops)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, to_next), arrays)


def _joined(out: jax.Array, lse: jax.Array, part: jax.Array, part_lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    whole = jnp.logaddexp(lse, part_lse)
    return out * jnp.exp(lse - whole)[..., None] + part * jnp.exp(part_lse - whole)[..., None], whole
