"""Attention and its gradients in closed form, dense, in NumPy's float64: what every fast core is compared with."""

from typing import Any, NamedTuple

import numpy as np

from jmm.kernels.core import FLOOR


class Expected(NamedTuple):
    """Arrays with the heads in front, [B, H, L, D]."""

    out: np.ndarray
    lse: np.ndarray
    """[B, H, Q]; `FLOOR` where nothing is seen."""
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    bias: np.ndarray | None
    """Gradients of Σ out · d_out by the four operands, each in the shape of its operand."""


def attention(q: Any, k: Any, v: Any, visible: Any, scale: float, bias: Any = None, d_out: Any = 0) -> Expected:
    """softmax(q kᵀ · scale + bias) v over the visible keys, zeros where there are none.

    Args:
      q: [B, H, Q, D].
      k, v: [B, G, K, D]; head h reads key head h // (H / G).
      visible: booleans [1 or B, Q, K].
      scale: of the logits.
      bias: [1 or B, 1 or H, Q, K]; −∞ hides as well.
      d_out: [B, H, Q, D].
    """
    q, k, v, d_out = (np.asarray(each, np.float64) for each in (q, k, v, d_out))
    bias = None if bias is None else np.asarray(bias, np.float64)
    batch, groups, _, _ = k.shape
    all_k, all_v = (np.repeat(each, q.shape[1] // groups, axis=1) for each in (k, v))
    logits = q @ all_k.swapaxes(2, 3) * scale + (0 if bias is None else bias)
    logits = np.where(np.asarray(visible)[:, None], logits, -np.inf)
    highest = np.maximum(logits.max(axis=-1, keepdims=True), FLOOR)
    weights = np.exp(logits - highest)
    total = weights.sum(axis=-1, keepdims=True)
    seen = total > 0
    total = np.where(seen, total, 1)
    weights = weights / total
    out = weights @ all_v
    d_logits = weights * (d_out @ all_v.swapaxes(2, 3) - np.sum(out * d_out, axis=-1, keepdims=True))

    def grouped(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, groups, -1, *x.shape[2:]).sum(axis=2)

    return Expected(
        out,
        np.where(seen, highest + np.log(total), FLOOR)[..., 0],
        d_logits @ all_k * scale,
        grouped(d_logits.swapaxes(2, 3) @ q) * scale,
        grouped(weights.swapaxes(2, 3) @ (d_out + np.zeros_like(q))),
        None if bias is None else d_logits.sum(axis=tuple(n for n in (0, 1) if bias.shape[n] == 1), keepdims=True),
    )
