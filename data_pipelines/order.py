"""The global order of examples, which depends on the seed alone."""

from typing import Any

import grain
import numpy as np

from data_pipelines.careful import Careful, Skipped
from data_pipelines.mixture import Mixture, task_names
from data_pipelines.packed import Packed
from data_pipelines.preprocess import Arrays, Preprocess
from data_pipelines.protocol import Dataset, Example, Source
from jmm.errors import UserError


def ordered(dataset: Dataset, seed: int, skipped: Skipped | None = None) -> grain.MapDataset[Any]:
    """The endless global list of augmented training examples as `Preprocess.fields` makes them. Broken records are
    replaced, and counted in `skipped`.

    Raises:
      UserError: a negative seed, or a dataset without training examples.
    """
    if seed < 0:
        raise UserError(f"the seed must be at least 0, not {seed}")
    preprocess = dataset.preprocessor()

    def prepare(example: Example, rng: np.random.Generator) -> Arrays:
        # What the augmentation has brought to the model's size stays: it may be cut out of the middle only once.
        return preprocess.fields(fitted(dataset.augment(example, rng), preprocess, again=False))

    return _shuffled(dataset, seed, skipped or Skipped()).seed(seed).random_map(prepare)


def _shuffled(dataset: Dataset, seed: int, skipped: Skipped) -> grain.MapDataset[Any]:
    """The endless list of examples; in that of a mixture the parts take turns by their weights."""
    if isinstance(dataset, Packed):
        return _shuffled(dataset.dataset, seed, skipped)
    if not isinstance(dataset, Mixture):
        name = type(dataset).__name__
        return _endless(name, Careful(dataset.source("train"), name, skipped), seed)
    sources = zip(task_names(dataset), dataset.sources("train"), strict=True)
    parts = [(name, Careful(source, name, skipped)) for name, source in sources]
    mixed = _mixed([_endless(*part, seed) for part in parts], dataset.weights)
    if dataset.later is None:
        return mixed
    # A seed of their own: with the same one the examples would come again in the order in which they came before.
    fresh = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    after = _mixed([_endless(*part, fresh) for part in parts], dataset.shares(dataset.later.weights))
    # Only lists with an end can be joined: this one is not reached.
    return grain.MapDataset.concatenate([mixed[: dataset.later.start], after[: 1 << 62]])


def _mixed(parts: list[grain.MapDataset[Any]], weights: list[float]) -> grain.MapDataset[Any]:
    return grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]


def _endless(name: str, source: Source, seed: int) -> grain.MapDataset[Any]:
    """Epoch after epoch, each a new permutation."""
    if not len(source):
        raise UserError(f"{name} has no training examples")
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def fitted(example: Example, preprocess: Preprocess, again: bool = True) -> Example:
    """The example with its image and the frames of its video brought to the model's size; `again`: also those that have
    it, of which some preprocessing takes the middle."""

    def fit(image: np.ndarray) -> np.ndarray:
        there = image.shape == (*preprocess.image_size, preprocess.channels)
        return image if there and not again else preprocess.fit(image)

    found = dict(example)
    if "image" in example:
        found["image"] = fit(example["image"])
    if "video" in example and preprocess.video_frames:
        found["video"] = np.stack([fit(frame) for frame in preprocess.frames(example["video"])])
    return found
