"""How well a model foretells the next pixel, and what it makes of an image's upper half."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.pipeline import held_out, training_arrays
from data_pipelines.protocol import Dataset
from jmm.evaluation import pictures
from jmm.generation import generate
from jmm.generation.images import paint
from jmm.model import Model

SHOWN = 10
"""How many images are drawn."""


@dataclass(frozen=True)
class NextPixel:
    """Bits per pixel on the held-out examples, the model's and those of a first-order Markov model, which knows how
    often each colour follows on each in the training examples."""

    temperature: float = 1.0
    """Of the images that are drawn."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """pixels/bits and pixels/markov_bits."""
        _, arrays = held_out(data)
        found = model.outputs({"image": arrays["image"]}, ["codes", "logits"])
        codes = found["codes"].reshape(len(found["codes"]), -1)
        train = model.outputs({"image": training_arrays(data)["image"]}, ["codes"])["codes"]
        bits = markov_bits(train.reshape(len(train), -1), codes, found["logits"].shape[-1])
        return {"pixels/bits": bits_of(found["logits"], codes), "pixels/markov_bits": bits}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Images that are completed from their upper halves, and some from nothing."""
        _, arrays = held_out(data, SHOWN)
        codes = model.outputs({"image": arrays["image"]}, ["codes"])["codes"]
        count, height, width = codes.shape
        upper = codes[:, : height // 2].reshape(count, -1)
        given = {"completed": upper, "once more": upper, "from nothing": upper[:, :0]}
        written = {name: self._written(model, each, height * width, i) for i, (name, each) in enumerate(given.items())}
        image = paint(model, codes)
        hidden = image.copy()
        hidden[:, height // 2 :] = 255
        painted = {name: paint(model, each.reshape(codes.shape)) for name, each in written.items()}
        path = folder / "completions.png"
        rows = {"image": image, "given": hidden, **painted}
        pictures.rows(path, {name: list(each) for name, each in rows.items()})
        return [path]

    def _written(self, model: Model, codes: np.ndarray, length: int, seed: int) -> np.ndarray:
        count = length - codes.shape[1]
        written = generate(model, {"codes": codes}, max_new_tokens=count, temperature=self.temperature, seed=seed)
        return np.concatenate([codes, np.asarray(written.ids)], axis=1)


def bits_of(logits: Float[np.ndarray, "B N K"], codes: Int[np.ndarray, "B N"]) -> float:
    """The mean cross-entropy of codes in bits."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    own = np.take_along_axis(logits, codes[..., None].astype(np.int64), axis=-1)[..., 0]
    return float((np.log(np.exp(logits).sum(axis=-1)) - own).mean() / math.log(2))


def markov_bits(train: Int[np.ndarray, "M N"], codes: Int[np.ndarray, "B N"], num_codes: int) -> float:
    """The mean cross-entropy in bits of codes, row by row, under a first-order Markov model of others: each pair counts
    once more than it was seen (Laplace), and what comes first follows on a start."""
    counts = np.ones((num_codes + 1, num_codes))
    np.add.at(counts, (_before(train, num_codes).ravel(), train.ravel()), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log2(shares[_before(codes, num_codes), codes]).mean())


def _before(codes: np.ndarray, start: int) -> np.ndarray:
    return np.concatenate([np.full_like(codes[:, :1], start), codes[:, :-1]], axis=1)
