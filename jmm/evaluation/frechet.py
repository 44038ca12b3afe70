"""How far two sets of pictures are apart in the eyes of a model (Heusel et al. 2017, section 2, Fréchet Inception
distance; here of any model on disk)."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Float

from jmm.errors import UserError
from jmm.model import Model
from jmm.protocol import forward, inputs_of

FEATURES = ("image_embedding", "image_pooled")
"""Outputs that say what a picture shows [B, D], the first that there is."""


def frechet_distance(one: Float[np.ndarray, "N D"], other: Float[np.ndarray, "M D"]) -> float:
    """Between the Gaussians with the means and covariances of two sets of features, squared, in float64 (Dowson &
    Landau 1982): |μ−μ'|² + tr Σ + tr Σ' − 2 tr (Σ^½ Σ' Σ^½)^½.

    The last trace is the sum of the singular values of the product of any two roots of Σ and Σ', for which the
    features themselves serve: no root of a singular matrix is taken, so that few pictures are no trouble.

    Raises:
      UserError: a set of fewer than two, which has no covariance.
    """
    if min(len(one), len(other)) < 2:
        raise UserError(f"a Fréchet distance needs two pictures of each set, not {len(one)} and {len(other)}")
    means = [each.mean(axis=0, dtype=np.float64) for each in (one, other)]
    roots = [
        np.linalg.qr(each - mean, mode="r") / np.sqrt(len(each) - 1)
        for each, mean in zip((one, other), means, strict=True)
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(np.square(root).sum() for root in roots) - 2 * shared)


def distance(model: Model, images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[str, float]:
    """Of two sets of pictures, uint8 [h, w, c], and of what it is: `frechet_clip_image_embedding`.

    Raises:
      UserError: the model sees no pictures, or says nothing of a picture as a whole; fewer than two pictures.
    """
    kind = type(model.module).__name__
    if "image" not in inputs_of(model.module, {"image": 0}):
        raise UserError(f"{kind} sees no pictures; a CLIP or a ViT does")
    sets = [model.preprocess(images=each) for each in (images, others)]
    one = {name: each[:1] for name, each in sets[0].items()}
    given = jax.eval_shape(partial(forward, model.module), model.variables, one)
    chosen = next((name for name in FEATURES if name in given and given[name].ndim == 2), None)
    if chosen is None:
        raise UserError(f"{kind} says nothing of a picture as a whole; a CLIP or a ViT does")
    found = [model.outputs(each, [chosen])[chosen] for each in sets]
    return f"frechet_{kind.lower()}_{chosen}", frechet_distance(*found)
