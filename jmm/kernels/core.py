"""What every fast attention core computes: outputs with the softmax's normaliser, and gradients from it.

A core works on arrays with the heads in front, on whatever part of the sequence it is given, and says with `lse` how
much the part weighs. So parts can be joined: over the blocks of a kernel, and over the devices of a ring.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jmm.kernels.masks import Labels, Mask

MASKED = -1e30
"""The logit of a pair that is not visible."""
FLOOR = MASKED / 2
"""The least maximum of a row. exp(MASKED − FLOOR) is 0, so a row that sees no key sums to 0 and needs no case of its
own; neither does a bias of −∞. It is also the `lse` of such a row."""

SAVED_NAMES = ("attention_out", "attention_lse")
"""Names under which a remat policy can save what the backward pass needs instead of running the forward pass again."""


class Operands(NamedTuple):
    """The arrays of one call. H query heads, G key heads; G divides H."""

    q: Float[Array, "B H Q D"]
    k: Float[Array, "B G K D"]
    v: Float[Array, "B G K D"]
    bias: Float[Array, "#B #H Q K"] | None
    q_labels: Labels
    k_labels: Labels


class Gradients(NamedTuple):
    """Of q, k, v and the bias, each in the shape of its operand; those of q, k, v may be float32 sums."""

    q: Float[Array, "B H Q D"]
    k: Float[Array, "B G K D"]
    v: Float[Array, "B G K D"]
    bias: Float[Array, "#B #H Q K"] | None


class Problem(NamedTuple):
    """What is known of a call when tracing; hashable."""

    formula: Mask
    """The mask without its labels."""
    scale: float
    """Of the logits."""
    interpret: bool = False
    """Run a kernel in the interpreter of Pallas."""
    blocks: Any = None
    """Block sizes of a kernel; None: from its table."""


@runtime_checkable
class Core(Protocol):
    """A module with these two functions. `offsets` are the positions of the first query and the first key, ints or
    traced scalars."""

    def forward(
        self, problem: Problem, operands: Operands, offsets: Sequence[Any] = (0, 0)
    ) -> tuple[Float[Array, "B H Q D"], Float[Array, "B H Q"]]:
        """The output, in the type of v, and log Σ exp of each row's logits in float32 (`FLOOR` where none is seen)."""

    def backward(
        self,
        problem: Problem,
        operands: Operands,
        lse: Float[Array, "B H Q"],
        delta: Float[Array, "B H Q"],
        d_out: Float[Array, "B H Q D"],
        offsets: Sequence[Any] = (0, 0),
    ) -> Gradients:
        """The gradients, given the whole softmax's `lse` and `delta` = Σ_d out · d_out (Dao et al. 2022, eq. 4)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(core: Core, problem: Problem, operands: Operands) -> Float[Array, "B H Q D"]:
    """Attention by a core, with the gradients of that core."""
    return core.forward(problem, operands)[0]


def _forward(core: Core, problem: Problem, operands: Operands) -> tuple[jax.Array, tuple[Any, ...]]:
    out, lse = (checkpoint_name(x, n) for x, n in zip(core.forward(problem, operands), SAVED_NAMES, strict=True))
    return out, (operands, out, lse)


def _backward(core: Core, problem: Problem, saved: tuple[Any, ...], d_out: jax.Array) -> tuple[Operands]:
    operands, out, lse = saved
    return (cotangents(operands, core.backward(problem, operands, lse, row_sums(out, d_out), d_out)),)


attend.defvjp(_forward, _backward)


def row_sums(out: jax.Array, d_out: jax.Array) -> Float[Array, "B H Q"]:
    """Σ_d out · d_out in float32: what the softmax's gradient subtracts from every logit's."""
    return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)


def cotangents(operands: Operands, gradients: Gradients) -> Operands:
    """Gradients as cotangents of the operands, in their types; labels have none."""

    def typed(operand: jax.Array | None, gradient: jax.Array | None) -> Any:
        return None if operand is None or gradient is None else gradient.astype(operand.dtype)

    q, k, v, bias = (typed(x, g) for x, g in zip(operands[:4], gradients, strict=True))
    return Operands(q, k, v, bias, None, None)  # type: ignore[arg-type]
