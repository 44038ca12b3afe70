"""The feed-forward half of a transformer block."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · σ(1.702 x): the approximation of GELU with which OpenAI trained CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class FeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) · up x) when `gated` (Shazeer 2020; SwiGLU is gated silu)."""

    hidden_dim: int
    activation: Activation = "gelu"
    gated: bool = False
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        act = ACTIVATIONS[self.activation]
        up = self._dense(self.hidden_dim, "up")(x)
        hidden = act(self._dense(self.hidden_dim, "gate")(x)) * up if self.gated else act(up)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return self._dense(x.shape[-1], "down")(hidden)

    def _dense(self, features: int, name: str) -> nn.Module:
        init = nn.initializers.xavier_uniform()
        return nn.Dense(features, use_bias=self.use_bias, dtype=self.dtype, kernel_init=init, name=name)
