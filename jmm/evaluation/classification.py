"""Accuracy of a classification head."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.pipeline import held_out
from data_pipelines.protocol import Dataset
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.model import Model

SHOWN = 40
"""Classes that a picture can show."""


@dataclass(frozen=True)
class Classification:
    """How often the highest logit is that of the held-out example's label."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of their ids."""
    count: int | None = None
    """Of held-out examples, drawn once for all; None: all, which are read into memory together."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """classification/accuracy."""
        truth, found = self._labels(model, data)
        return {"classification/accuracy": float(np.mean(truth == found))}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Which class is taken for which, unless they are too many to be told apart in a picture."""
        if len(self.labels) > SHOWN:
            return []
        truth, found = self._labels(model, data)
        counts = np.zeros((len(self.labels), len(self.labels)), int)
        np.add.at(counts, (truth, found), 1)
        path = folder / "confusion.png"
        pictures.confusion(path, counts, self.labels)
        return [path]

    def _labels(self, model: Model, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
        _, arrays = held_out(data, self.count)
        if "label" not in arrays:
            raise UserError(f"accuracy needs held-out examples with a label; {type(data).__name__} has none")
        logits = model.outputs({"image": arrays["image"]}, ["logits"])["logits"]
        return arrays["label"], np.argmax(logits, axis=1)
