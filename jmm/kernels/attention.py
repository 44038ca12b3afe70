"""The one entry to attention. Every part calls it, so a faster core is plugged in here and nowhere else."""

import importlib
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jmm.kernels.choice import Implementation, choose
from jmm.kernels.core import Core, Operands, Problem, attend
from jmm.kernels.masks import Causal, First, Labels, Mask, without_labels
from jmm.kernels.placement import Local, placed, target
from jmm.kernels.reference import reference
from jmm.kernels.ring import Ring

HOME = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}
"""The platform of a kernel; on another it runs in the interpreter."""


def attention(
    q: Float[Array, "..."],
    k: Float[Array, "..."],
    v: Float[Array, "..."],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "..."]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) under a mask formula.

    Args:
      q: queries [B, Q, H, D].
      k: keys [B, K, G, D]; H is a multiple of G, and head h reads key head h // (H / G).
      v: values [B, K, G, D].
      mask: which key each query may see; None shows all. A query that sees none gives zeros.
      bias: added to the scaled logits, [1 or B, 1 or H, Q, K].
      scale: of the logits; 1/√D unless given.
      implementation: None lets platform, shape and mask decide (`jmm.kernels.choice`).
        `reference` holds every logit. `chunked` is plain JAX with memory linear in the length. `pallas_tpu` and
        `pallas_gpu` are kernels that skip what the mask hides; off their platform they run in Pallas's interpreter.
        `cudnn` is NVIDIA's own, without formulas that it does not know.

    Returns:
      [B, Q, H, D] in the type of `v`; the softmax is taken in float32.

    Raises:
      ValueError: naming the shapes that disagree, or what a forced implementation cannot do.
    """
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f"attention takes q, k, v of [B, L, K, D], k and v alike, not {_shapes(q, k, v)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must share batch size and head width: {_shapes(q, k)}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} query heads do not divide into groups over {k.shape[2]} key heads: {_shapes(q, k)}"
        )
    if mask is not None:
        mask.check(q.shape[0], q.shape[1], k.shape[1])
    if bias is not None:
        whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        fits = bias.ndim == 4 and bias.shape[2:] == whole[2:]
        if not fits or any(size not in (1, full) for size, full in zip(bias.shape, whole, strict=True)):
            raise ValueError(f"the bias must be [1 or B, 1 or H, Q, K] with {whole}, not {bias.shape}")
    at = target()
    formula = without_labels(mask) if mask is not None else First(k.shape[1])
    q_labels, k_labels = mask.labels(q.shape[1], k.shape[1]) if mask is not None else ((), ())
    problem = Problem(formula, q.shape[-1] ** -0.5 if scale is None else float(scale))
    name = choose(at, problem, jax.eval_shape(_operands, q, k, v, bias, q_labels, k_labels), implementation)
    if name == "reference":
        return reference(q, k, v, mask, bias, problem.scale)
    if name == "cudnn":
        return placed(lambda *_: _cudnn(problem), q, k, v, bias, q_labels, k_labels)
    problem = problem._replace(interpret=HOME.get(name, at.platform) != at.platform)

    core = cast(Core, importlib.import_module(f"jmm.kernels.{name}"))

    def local(axes: tuple[str, ...], hops: int) -> Local:
        return _with_core(Ring(core, axes, hops) if axes else core, problem)

    return placed(local, q, k, v, bias, q_labels, k_labels)


def _with_core(core: Core, problem: Problem) -> Local:
    def run(
        q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, q_labels: Labels, k_labels: Labels
    ) -> jax.Array:
        return _heads_first(attend(core, problem, _operands(q, k, v, bias, q_labels, k_labels)))

    return run


def _operands(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, q_labels: Labels, k_labels: Labels
) -> Operands:
    return Operands(_heads_first(q), _heads_first(k), _heads_first(v), bias, q_labels, k_labels)


def _cudnn(problem: Problem) -> Local:
    def run(q: jax.Array, k: jax.Array, v: jax.Array, *_: object) -> jax.Array:
        causal = isinstance(problem.formula, Causal)
        return jax.nn.dot_product_attention(q, k, v, scale=problem.scale, is_causal=causal, implementation="cudnn")

    return run


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, L, H, D] to [B, H, L, D], and back."""
    return jnp.swapaxes(x, 1, 2)


def _shapes(*arrays: Array) -> str:
    return ", ".join(str(array.shape) for array in arrays)
