"""Zero-shot classification (Radford et al. 2021, section 3.1): the class whose captions lie closest to the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data_pipelines.captions import caption
from data_pipelines.pipeline import held_out
from data_pipelines.protocol import Dataset
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.model import Model


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy on the held-out examples; `label` i is the i-th of `labels`."""

    labels: tuple[str, ...]
    """Names of the classes."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Captions of a class; {} is its name. Their embeddings are averaged."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """zero_shot/accuracy."""
        _, arrays = held_out(data)
        if "label" not in arrays:
            raise UserError(f"zero-shot accuracy needs held-out examples with a label; {type(data).__name__} has none")
        image = model.outputs({"image": arrays["image"]}, ["image_embedding"])["image_embedding"]
        best = np.argmax(image @ class_embeddings(model, self.labels, self.templates).T, axis=1)
        return {"zero_shot/accuracy": float(np.mean(best == arrays["label"]))}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """The similarity of some held-out images to every class."""
        examples, arrays = held_out(data)
        order = np.argsort(arrays["label"], kind="stable")
        each = [order[arrays["label"][order] == label][:2] for label in range(len(self.labels))]
        chosen = np.concatenate(each)[:24]
        image = model.outputs({"image": arrays["image"][chosen]}, ["image_embedding"])["image_embedding"]
        cosine = class_embeddings(model, self.labels, self.templates) @ image.T
        path = folder / "similarity.png"
        captions = [caption(self.templates[0], label) for label in self.labels]
        pictures.similarity(path, cosine, captions, [examples[i]["image"] for i in chosen])
        return [path]


def class_embeddings(model: Model, labels: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "C E"]:
    """One unit vector a class: the mean of its captions' embeddings.

    Raises:
      UserError: no labels.
    """
    if not labels:
        raise UserError("there are no labels to choose from")
    texts = [caption(template, label) for label in labels for template in templates]
    embedding = model.outputs(model.preprocess(texts=texts), ["text_embedding"])["text_embedding"]
    mean = embedding.reshape(len(labels), len(templates), -1).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def classify(
    model: Model, images: Sequence[np.ndarray], labels: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "B C"]:
    """The probability of each label for each picture, by the model's own temperature: a softmax over the labels, or,
    of a model that learnt with a sigmoid (Zhai et al. 2023), that of each label for itself."""
    batch = model.preprocess(images=images)
    image = model.outputs(batch, ["image_embedding"])["image_embedding"]
    learnt = model(image=batch["image"][:1])
    logits = float(learnt["logit_scale"]) * image @ class_embeddings(model, labels, templates).T
    if "logit_bias" in learnt:
        # tanh does not overflow
        return 0.5 + 0.5 * np.tanh((logits + float(learnt["logit_bias"])) / 2)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
