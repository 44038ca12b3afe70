"""Pictures that a stream model draws on held-out captions, judged by a checker that knows what the captions mean."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import jmm
from data_pipelines.codes import Codes
from data_pipelines.pipeline import held_out_examples
from data_pipelines.protocol import Checker, Dataset, Example
from data_pipelines.stream import codes_of
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.evaluation.frechet import distance
from jmm.evaluation.retrieval import likeness
from jmm.generation.images import Manner, draw_images, paint
from jmm.model import Model

SHOWN = 12
"""How many captions are drawn."""


@dataclass(frozen=True)
class Drawings:
    """The share of held-out captions that are true of what is drawn on them. The checker is the dataset's own
    (`data_pipelines.protocol.Checker`); pictures are made by the tokenizer that made the codes."""

    count: int | None = 200
    """Of held-out captions; None: all."""
    manner: Manner = field(default_factory=Manner)
    """How codes are drawn."""
    clip: str = ""
    """The folder of a CLIP; of so many drawings as follows the one is judged, too, that it finds likest its caption."""
    candidates: int = 8
    """Drawings of each caption for the CLIP to choose from."""
    features: str = ""
    """The folder of a model in whose eyes what is drawn is compared with the true pictures, as the tokenizer makes them
    (`jmm.evaluation.frechet`)."""
    name: str = "drawings"
    """What the figures are called."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """drawings/true; drawings/chance, the share of the *other* captions that are true of a picture;
        drawings/tokenized, the share that are true of the true picture, as the tokenizer makes it of its codes; and
        with a CLIP drawings/reranked, with the features of a model drawings/frechet_clip_image_embedding."""
        codes, checker = _data(data)
        tokenizer, examples = jmm.load(codes.tokenizer), held_out_examples(codes, self.count)
        captions = [each["caption"] for each in examples]
        drawn, originals = self._drawn(model, tokenizer, captions), paint(tokenizer, _codes(examples))
        seen = [checker.see(image) for image in drawn]
        true = np.array([[checker.true_of(caption, each) for caption in captions] for each in seen])
        others = ~np.eye(len(captions), dtype=bool)
        known = [checker.see(image) for image in originals]
        figures = {
            "true": true.diagonal().mean(),
            "chance": true[others].mean() if others.any() else 0.0,
            "tokenized": np.mean([checker.true_of(*each) for each in zip(captions, known, strict=True)]),
        }
        if self.clip:
            best = zip(captions, self._best(model, tokenizer, captions), strict=True)
            figures["reranked"] = np.mean([checker.true_of(caption, checker.see(image)) for caption, image in best])
        if self.features:
            figures.update([distance(jmm.load(self.features), list(drawn), list(originals))])
        return {f"{self.name}/{name}": float(value) for name, value in figures.items()}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Some captions with what is drawn on them, and whether they are true of it; and the true picture, as the
        tokenizer makes it."""
        codes, checker = _data(data)
        tokenizer, examples = jmm.load(codes.tokenizer), held_out_examples(codes, min(SHOWN, self.count or SHOWN))
        captions = [each["caption"] for each in examples]
        drawn, notes = self._drawn(model, tokenizer, captions), []
        for caption, image in zip(captions, drawn, strict=True):
            true = checker.true_of(caption, checker.see(image))
            notes.append([(f"{'✓' if true else '✗'} {caption}", pictures.RIGHT if true else pictures.WRONG)])
        path, known = folder / f"{self.name}.png", folder / f"{self.name}_tokenized.png"
        pictures.texts(path, list(drawn), notes)
        pictures.rows(known, {"of true codes": list(paint(tokenizer, _codes(examples)))})
        return [path, known]

    def _best(self, model: Model, tokenizer: Model, captions: list[str]) -> list[np.ndarray]:
        texts = [caption for caption in captions for _ in range(self.candidates)]
        images = draw_images(model, tokenizer, texts, manner=self.manner, seed=1)
        scores = likeness(jmm.load(self.clip), list(images), texts).reshape(len(captions), self.candidates)
        return [images[i * self.candidates + best] for i, best in enumerate(scores.argmax(axis=1))]

    def _drawn(self, model: Model, tokenizer: Model, captions: list[str]) -> np.ndarray:
        return draw_images(model, tokenizer, captions, manner=self.manner)


def _data(data: Dataset) -> tuple[Codes, Checker]:
    codes = codes_of(data)
    if codes is None or not isinstance(codes.data, Checker):
        raise UserError("drawings are judged on codes (jmm encode) of a dataset that checks pictures, such as Scenes")
    return codes, codes.data


def _codes(examples: list[Example]) -> Any:
    return np.stack([each["codes"] for each in examples])
