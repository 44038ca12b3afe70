"""Captions that a model writes, against true ones."""

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.mixture import part_of
from data_pipelines.protocol import Dataset
from jmm.evaluation import pictures
from jmm.evaluation.attention_maps import word_maps
from jmm.evaluation.bleu import bleu
from jmm.evaluation.cider import cider_d
from jmm.evaluation.writing import Written, by_kind, exact_share, pictures_of, write_held_out
from jmm.model import Model

SHOWN, LOOKED_INTO = 12, 3
"""How many captions are drawn, and for how many of them where the model looked."""


@dataclass(frozen=True)
class Captions:
    """Exact match, BLEU-4 and CIDEr-D on the held-out examples; all true captions of an image are its references."""

    part: str = ""
    """Of a mixture; empty: of the whole dataset."""
    count: int | None = None
    """Of held-out examples, drawn once for all; None: all."""
    prompt: str | None = None
    """What the model is asked; None: the prompt of each example, or that of the model's preprocessing."""
    max_new_tokens: int | None = None
    """The most tokens of a caption; None: as many as the model learnt to write."""
    beams: int = 1
    """Hypotheses of a beam search; 1: the most probable token is taken always."""
    name: str = "captions"
    """What the figures are called."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """captions/exact in [0, 1], of all and of each kind; captions/bleu4 in [0, 1]; captions/cider in [0, 10]."""
        written = self._written(model, data, self.count)
        texts, right = [each.text for each in written], [each.right for each in written]
        figures = {"bleu4": bleu(texts, right), "cider": float(cider_d(texts, right).mean())}
        exact = by_kind(written, f"{self.name}/exact", exact_share)
        return exact | {f"{self.name}/{name}": value for name, value in figures.items()}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Some images with their captions, and where the model looked for each word."""
        written = self._written(model, data, min(SHOWN, self.count or SHOWN))
        paths = [folder / f"{self.name}.png"]
        notes = [each.notes("✓" if each.exact else "✗") for each in written]
        pictures.texts(paths[0], pictures_of(part_of(data, self.part), written), notes)
        some = [each for each in written if "image" in each.example][:LOOKED_INTO]
        images = [each.example["image"] for each in some]
        maps = word_maps(model, images, [each.prompt for each in some], [each.text for each in some])
        if any(maps):
            paths.append(folder / f"{self.name}_attention.png")
            pictures.looks(paths[1], images, [[(each.word, each.weights) for each in words] for words in maps])
        return paths

    def _written(self, model: Model, data: Dataset, count: int | None) -> list[Written]:
        return write_held_out(
            model,
            data,
            part=self.part,
            count=count,
            prompt=self.prompt,
            max_new_tokens=self.max_new_tokens,
            beams=self.beams,
        )
