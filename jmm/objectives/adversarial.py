"""Losses of two players, of whom one tells real from made (Goodfellow et al. 2014)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hinge(real: Float[Array, "*B"], made: Float[Array, "*B"]) -> Float[Array, ""]:
    """½ (mean max(0, 1 − D(real)) + mean max(0, 1 + D(made))), of logits D (Lim & Ye 2017)."""
    return (jax.nn.relu(1 - real.astype(jnp.float32)).mean() + jax.nn.relu(1 + made.astype(jnp.float32)).mean()) / 2


def logistic(real: Float[Array, "*B"], made: Float[Array, "*B"]) -> Float[Array, ""]:
    """½ (mean softplus(−D(real)) + mean softplus(D(made))): the likelihood of right answers."""
    return (jax.nn.softplus(-real.astype(jnp.float32)).mean() + jax.nn.softplus(made.astype(jnp.float32)).mean()) / 2


def deceit(made: Float[Array, "*B"]) -> Float[Array, ""]:
    """−mean D(made): what its maker lowers."""
    return -made.astype(jnp.float32).mean()


def balance(
    reconstruction: Float[Array, "..."], deceit: Float[Array, "..."], eps: float = 1e-4, most: float = 1e4
) -> Float[Array, ""]:
    """|∇ reconstruction| / (|∇ deceit| + eps), at most `most`, of the gradients of both losses by the kernel that makes
    the image: the weight by which the two pull alike (Esser et al. 2021, equation 7). It is a constant to gradients."""
    ratio = jnp.linalg.norm(reconstruction.ravel()) / (jnp.linalg.norm(deceit.ravel()) + eps)
    return jax.lax.stop_gradient(jnp.minimum(ratio, most))
