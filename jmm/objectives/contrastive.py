"""Losses over pairs: what belongs together should be closer than what does not.

`softmax_contrastive` and `sigmoid_contrastive` never build the [B, B] matrix, on one device or on a mesh
(jmm/kernels/contrastive.py). Beside them stand the same losses as their papers write them, `dense_softmax` and
`dense_sigmoid`: to read, and for the tests to hold the others against.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from jmm.kernels import contrastive as kernel

Labels = Int[Array, " B"] | Shaped[Array, "B B"] | None
"""What belongs together: None, row i with row i alone; ids [B], rows of equal ids; a matrix [B, B], as it says."""


def softmax_contrastive(
    image: Float[Array, "..."],
    text: Float[Array, "..."],
    scale: Float[Array, ""],
    *,
    labels: Shaped[Array, "..."] | None = None,
    chunk: int = kernel.CHUNK,
) -> Float[Array, ""]:
    """The symmetric cross-entropy of CLIP (Radford et al. 2021, figure 3), in O(B·D) memory.

        ½ mean_i [ CE(scale · image_i · textᵀ, i) + CE(scale · text_i · imageᵀ, i) ]

    With `labels` a row may belong to many, as in UniCL (Yang et al. 2022): its target is spread evenly
    over them, and likewise for columns. A row that belongs to none has no target and adds 0 to the mean; it is still
    a negative of the others.

    Args:
      image: [B, D], unit vectors as a rule.
      text: [B, D].
      scale: the inverse temperature.
      labels: None: row i of `image` belongs to row i of `text` and to no other. Ids [B]: to every row of an equal id.
        A matrix [B, B] ≥ 0, image by text: the targets, normalised here by rows for image → text and by columns for
        text → image. No gradient flows to them.
      chunk: the matrix is visited in tiles of at most [chunk, chunk].

    Raises:
      ValueError: naming the shapes that disagree.
    """
    _check(image, text, labels)
    return kernel.softmax(image, text, scale, _targets(labels, image.shape[0], normalised=True), chunk)


def sigmoid_contrastive(
    image: Float[Array, "..."],
    text: Float[Array, "..."],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    labels: Shaped[Array, "..."] | None = None,
    chunk: int = kernel.CHUNK,
) -> Float[Array, ""]:
    """Every pair is a yes–no question (Zhai et al. 2023, SigLIP, equation 2), in O(B·D) memory.

        −1/B Σ_i Σ_j log σ( z_ij (scale · image_i · text_j + bias) ),   z_ij = 1 where i belongs to j, else −1

    The arguments are those of `softmax_contrastive`. A matrix of labels holds the probabilities y_ij of a yes:

        −1/B Σ_i Σ_j y_ij log σ(logit_ij) + (1 − y_ij) log σ(−logit_ij)
    """
    _check(image, text, labels)
    return kernel.sigmoid(image, text, scale, bias, _targets(labels, image.shape[0], normalised=False), chunk)


def caption_ids(text: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Equal ids to equal rows of tokens, different ids to different ones, in [0, B).

    Token by token: two rows stay together while their next tokens agree.
    """
    # Sorting needs the rows of all devices, and they are few bytes: gathered once, not once for every token.
    text = nn.with_logical_constraint(text, (None, None))

    def split(ids: Array, tokens: Array) -> tuple[Array, None]:
        order = jnp.lexsort((tokens, ids))
        differs = (jnp.diff(ids[order]) != 0) | (jnp.diff(tokens[order]) != 0)
        return jnp.zeros_like(ids).at[order[1:]].set(jnp.cumsum(differs, dtype=ids.dtype)), None

    return jax.lax.scan(split, jnp.zeros(text.shape[0], jnp.int32), text.T)[0]


def dense_softmax(
    image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""], labels: Labels = None
) -> Float[Array, ""]:
    """`softmax_contrastive` as the papers write it."""
    logits = _similarity(image, text) * scale
    if labels is None:
        own = jnp.diagonal(logits)
        rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
        return jnp.mean((rows + columns) / 2 - own)
    same = _matrix(labels)
    losses = [
        -jnp.sum(same / _nonzero(same.sum(axis, keepdims=True)) * jax.nn.log_softmax(logits, axis)) for axis in (0, 1)
    ]
    return (losses[0] + losses[1]) / 2 / logits.shape[0]


def dense_sigmoid(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    labels: Labels = None,
) -> Float[Array, ""]:
    """`sigmoid_contrastive` as the paper writes it."""
    logits = _similarity(image, text) * scale + bias
    same = jnp.eye(logits.shape[0]) if labels is None else _matrix(labels)
    losses = same * jax.nn.log_sigmoid(logits) + (1 - same) * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(losses) / logits.shape[0]


def nt_xent(first: Float[Array, "B D"], second: Float[Array, "B D"], temperature: float) -> Float[Array, ""]:
    """The loss of SimCLR (Chen et al. 2020, equation 1) between two views of B examples.

    Each of the 2B unit vectors must find its other view among the 2B − 1 others.
    """
    both = jnp.concatenate([first, second])
    logits = _similarity(both, both) / temperature
    logits = jnp.where(jnp.eye(logits.shape[0], dtype=bool), -jnp.inf, logits)
    partner = jnp.roll(jnp.arange(logits.shape[0]), first.shape[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, partner).mean()


def _similarity(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("id,jd->ij", rows, columns, preferred_element_type=jnp.float32)


def _check(image: Array, text: Array, labels: Array | None) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be [B, D], row by row a pair, not {image.shape} and {text.shape}")
    rows = image.shape[0]
    if labels is not None and labels.shape not in ((rows,), (rows, rows)):
        raise ValueError(
            f"labels of images {image.shape} are {(rows,)} ids or a {(rows, rows)} matrix, not {labels.shape}"
        )


def _targets(labels: Array | None, rows: int, normalised: bool) -> kernel.Targets:
    """Each pair's target is the mean of what its row and its column make of it."""
    half = jnp.full(rows, 0.5)
    if labels is None:
        return kernel.Targets(jnp.arange(rows), None, half, half)
    if labels.ndim == 2:
        sums = [labels.sum(axis, dtype=jnp.float32) for axis in (1, 0)]
        weights = [jnp.where(each > 0, 0.5 / _nonzero(each), 0) for each in sums]
        return kernel.Targets(None, labels, *(weights if normalised else (half, half)))
    weight = 0.5 / _occurrences(labels) if normalised else half
    return kernel.Targets(labels, None, weight, weight)


def _occurrences(ids: Int[Array, " B"]) -> Int[Array, " B"]:
    """How often each row's id occurs."""
    ordered = jnp.sort(ids)
    return jnp.searchsorted(ordered, ids, side="right") - jnp.searchsorted(ordered, ids)


def _matrix(labels: Array) -> Float[Array, "B B"]:
    return (labels if labels.ndim == 2 else labels[:, None] == labels).astype(jnp.float32)


def _nonzero(x: Array) -> Array:
    """1 in place of 0, to divide by."""
    return jnp.where(x > 0, x, 1)
