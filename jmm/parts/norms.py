"""Normalisation layers, with statistics in float32."""

from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike

NormKind = Literal["layer", "rms"]


def make_norm(kind: NormKind, eps: float, dtype: DTypeLike, name: str, use_bias: bool = True) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), with a learned `scale` and, for LayerNorm, `bias`.

    The variance is taken about the mean in a second pass: the one-pass form E[x²] − E[x]² loses digits.
    """
    if kind == "rms":
        return nn.RMSNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, use_bias=use_bias, name=name)
