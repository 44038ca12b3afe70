"""Retrieval: the image for a text, the text for an image, by cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.mixture import part_of
from data_pipelines.pipeline import held_out
from data_pipelines.protocol import Dataset, Example
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.generation.pursuit import read_texts
from jmm.model import Model


@dataclass(frozen=True)
class Retrieval:
    """Recall on the held-out pairs; images with the same caption are equally right answers to it."""

    ranks: tuple[int, ...] = (1, 5, 10)
    """Recall at these ranks."""
    queries: tuple[str, ...] = ()
    """Texts whose nearest held-out images are drawn; none: the first captions."""
    part: str = ""
    """Of a mixture; empty: of the whole dataset."""
    count: int | None = None
    """Of held-out pairs that are searched, drawn once for all; None: all."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """retrieval/text_to_image@k and retrieval/image_to_text@k."""
        image, text, relevant, *_ = self._pairs(model, data)
        cosine = text @ image.T
        figures = {}
        for name, scores, right in (
            ("text_to_image", cosine, relevant),
            ("image_to_text", cosine.T, relevant.T),
        ):
            for k, recall in zip(self.ranks, recall_at(scores, right, self.ranks), strict=True):
                figures[f"retrieval/{name}@{k}"] = recall
        return figures

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """The nearest held-out images for a few queries."""
        image, _, _, captions, examples = self._pairs(model, data)
        queries = self.queries or tuple(captions[:5])
        order, cosine = search(model, image, queries, count=8)
        path = folder / "nearest.png"
        pictures.nearest(path, queries, [[examples[i]["image"] for i in row] for row in order], cosine)
        return [path]

    def _pairs(
        self, model: Model, data: Dataset
    ) -> tuple[Float[np.ndarray, "N E"], Float[np.ndarray, "T E"], Bool[np.ndarray, "T N"], list[str], list[Example]]:
        """Embeddings of the images and of the different captions, which belong together, and the examples."""
        data = part_of(data, self.part)
        examples, arrays = held_out(data, self.count)
        if not all("caption" in example and "image" in example for example in examples):
            raise UserError(f"retrieval needs held-out images with captions; {type(data).__name__} has none")
        captions = list(dict.fromkeys(example["caption"] for example in examples))
        image = model.outputs({"image": arrays["image"]}, ["image_embedding"])["image_embedding"]
        text = model.outputs(model.preprocess(texts=captions), ["text_embedding"])["text_embedding"]
        relevant = np.array([[example["caption"] == caption for example in examples] for caption in captions])
        return image, text, relevant, captions, examples


def recall_at(scores: Float[np.ndarray, "Q N"], relevant: Bool[np.ndarray, "Q N"], ranks: Sequence[int]) -> list[float]:
    """The share of queries with a right answer among the k best, for each k."""
    ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return [float(ranked[:, :k].any(axis=1).mean()) for k in ranks]


def likeness(model: Model, images: Sequence[np.ndarray], texts: Sequence[str]) -> Float[np.ndarray, "N"]:
    """The cosine similarity of each image, uint8 [h, w, c], to its text.

    Raises:
      UserError: the model does not embed images and texts in one space, or has another vocabulary than its tokenizer.
    """
    rows = {**read_texts(model, texts), **model.preprocess(images=images)}
    found = model.outputs(rows, ["image_embedding", "text_embedding"])
    return np.einsum("nd,nd->n", found["image_embedding"], found["text_embedding"])


def search(
    model: Model, image: Float[np.ndarray, "N E"], queries: Sequence[str], count: int
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """Indices and cosine similarities of the `count` images nearest to each text, best first."""
    text = model.outputs(model.preprocess(texts=queries), ["text_embedding"])["text_embedding"]
    cosine = text @ image.T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosine, order, axis=1)
