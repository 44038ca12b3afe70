"""The palette of a dataset's pictures, by k-means (Chen et al. 2020, Generative Pretraining from Pixels)."""

import numpy as np

from data_pipelines.protocol import Dataset
from jmm.errors import UserError

PICTURES, DIGITS = 1000, 4
"""How many pictures are read, and decimals of a colour: so it is the same wherever it is fitted."""


def fit_palette(dataset: Dataset, count: int, seed: int = 0) -> tuple[float, ...]:
    """The colours of a dataset's training pictures, one after another and sorted, as `jmm.models.image_gpt` has them.

    Args:
      dataset: its pictures as they are, without augmentation.
      count: of colours.
      seed: of the choice of pictures and the first colours.

    Raises:
      UserError: the pictures have fewer colours, or there are none.
    """
    from sklearn.cluster import KMeans

    source, preprocess = dataset.source("train"), dataset.preprocessor()
    chosen = np.random.default_rng(seed).permutation(len(source))[:PICTURES]
    if not len(chosen):
        raise UserError(f"{type(dataset).__name__} has no training pictures to take colours from")
    images = [preprocess.normalise(preprocess.fit(source[int(i)]["image"])) for i in chosen]
    pixels = np.concatenate([image.reshape(-1, preprocess.channels) for image in images])
    colours, times = np.unique(pixels, axis=0, return_counts=True)
    if len(colours) < count:
        raise UserError(f"the pictures have {len(colours)} colours; a palette of {count} needs as many")
    means = KMeans(count, n_init=4, random_state=seed).fit(colours, sample_weight=times).cluster_centers_
    ordered = means[np.lexsort(means.T[::-1])]
    return tuple(np.round(ordered, DIGITS).ravel().tolist())
