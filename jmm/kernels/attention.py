"""The one entry to attention. Every part calls it, so a faster core is plugged in here and nowhere else."""

from jaxtyping import Array, Float

from jmm.kernels.masks import Mask
from jmm.kernels.reference import reference


def attention(
    q: Float[Array, "..."],
    k: Float[Array, "..."],
    v: Float[Array, "..."],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "..."]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) under a mask formula.

    Args:
      q: queries [B, Q, H, D].
      k: keys [B, K, G, D]; H is a multiple of G, and head h reads key head h // (H / G).
      v: values [B, K, G, D].
      mask: which key each query may see; None shows all. A query that sees none gives zeros.
      bias: added to the scaled logits, [1 or B, 1 or H, Q, K].
      scale: of the logits; 1/√D unless given.

    Returns:
      [B, Q, H, D] in the type of `v`; the softmax is taken in float32.

    Raises:
      ValueError: naming the shapes that disagree.
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
        mask.check(q.shape[1], k.shape[1])
    if bias is not None:
        whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        fits = bias.ndim == 4 and bias.shape[2:] == whole[2:]
        if not fits or any(size not in (1, full) for size, full in zip(bias.shape, whole, strict=True)):
            raise ValueError(f"the bias must be [1 or B, 1 or H, Q, K] with {whole}, not {bias.shape}")
    return reference(q, k, v, mask, bias, q.shape[-1] ** -0.5 if scale is None else scale)


def _shapes(*arrays: Array) -> str:
    return ", ".join(str(array.shape) for array in arrays)
