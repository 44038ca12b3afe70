"""Answers that a model writes, against true ones: questions about a picture, or the text in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.mixture import part_of
from data_pipelines.protocol import Dataset
from jmm.evaluation import pictures
from jmm.evaluation.vqa import accuracy
from jmm.evaluation.writing import Written, by_kind, exact_share, pictures_of, write_held_out
from jmm.model import Model

SHOWN = 12
"""How many answers are drawn."""


@dataclass(frozen=True)
class Questions:
    """VQA accuracy and exact match on the held-out examples, of all and of each kind of question.

    `accuracy` is that of Antol et al. 2015, with their normalisation; `exact` is that of reading: every letter counts.
    """

    part: str = ""
    """Of a mixture; empty: of the whole dataset."""
    count: int | None = None
    """Of held-out examples, drawn once for all; None: all."""
    max_new_tokens: int | None = None
    """The most tokens of an answer; None: as many as the model learnt to write."""
    beams: int = 1
    """Hypotheses of a beam search; 1: the most probable token is taken always."""
    name: str = "questions"
    """What the figures are called."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """questions/accuracy and questions/exact in [0, 1], and by kind: questions/accuracy@count …"""
        written = self._written(model, data, self.count)
        figures = by_kind(written, f"{self.name}/accuracy", mean_accuracy)
        return figures | by_kind(written, f"{self.name}/exact", exact_share)

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Some images with questions and answers."""
        path = folder / f"{self.name}.png"
        written = self._written(model, data, min(SHOWN, self.count or SHOWN))
        notes = [each.notes(_mark(each)) for each in written]
        pictures.texts(path, pictures_of(part_of(data, self.part), written), notes)
        return [path]

    def _written(self, model: Model, data: Dataset, count: int | None) -> list[Written]:
        return write_held_out(
            model, data, part=self.part, count=count, max_new_tokens=self.max_new_tokens, beams=self.beams
        )


def mean_accuracy(written: Sequence[Written]) -> float:
    """The mean VQA accuracy."""
    return float(np.mean([accuracy(each.text, each.right) for each in written]))


def _mark(written: Written) -> str:
    """Right to the letter, right as VQA counts, or wrong."""
    if written.exact:
        return "✓"
    return "≈" if accuracy(written.text, written.right) >= 0.5 else "✗"
