"""A folder of classified images, as ImageNet lies on disk.

imagenet/
  train/n01440764/n01440764_18.JPEG      a folder for each class, in the order of whose names the labels count
  val/n01440764/ILSVRC2012_val_00000293.JPEG
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.images import list_images, read_image
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from data_pipelines.view import RandomView
from jmm.errors import UserError


@dataclass(frozen=True)
class ClassFolder(RandomView):
    """Images with the label of the folder that they lie in; a random part of each is seen in training."""

    path: str
    """The folder; it holds one for training and one that is held out."""
    train: str = "train"
    """The one for training."""
    held_out: str = "val"
    """The other."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """Size of images."""

    def source(self, split: Split) -> Source:
        """RGB images as they lie on disk and their labels; an image is read when it is asked for.

        Raises:
          UserError: a folder that is not there, holds no folder of a class or no image, or other classes than the
            other.
        """
        classes = self._classes(self.train)
        folder = self.train if split == "train" else self.held_out
        if (found := self._classes(folder)) != classes:
            odd = sorted(set(classes) ^ set(found))[0]
            raise UserError(f"{self.train} and {folder} in {self.path} must have the same classes; one lacks {odd}")
        pairs = [(path, i) for i, name in enumerate(classes) for path in list_images(Path(self.path, folder, name))]
        return ClassSource(pairs)

    def _classes(self, folder: str) -> list[str]:
        whole = Path(self.path, folder)
        found = sorted(each.name for each in whole.iterdir() if each.is_dir()) if whole.is_dir() else []
        if not found:
            raise UserError(f"there is no {whole} with a folder of images for each class")
        return found

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A random view of the image at the size that the model reads."""
        cfg = self.preprocess
        return {**example, "image": self.view(example["image"], cfg.image_size, cfg.channels, rng)}

    def preprocessor(self) -> Preprocess:
        """As configured."""
        return self.preprocess


@dataclass(frozen=True)
class ClassSource:
    """Reads images when they are asked for."""

    pairs: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        path, label = self.pairs[index]
        return {"image": read_image(path), "label": label}
