"""The drawn scenes as a dataset of TFDS; an example of how one is written.

    tfds build data_pipelines/builders/drawn_scenes.py --file_format=array_record --data_dir=DIR

gives DIR/drawn_scenes/1.0.0, which `TFDS("DIR/drawn_scenes/1.0.0")` reads. The command imports Beam and TensorFlow;
`DrawnScenes(data_dir=DIR, file_format="array_record").download_and_prepare()` does not. A picture is handed
over as the bytes of a file: given as an array, TFDS would encode it with TensorFlow.
"""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.protocol import Split
from data_pipelines.scenes import Scenes

COUNTS: dict[str, tuple[Split, int]] = {"train": ("train", 2000), "test": ("held_out", 200)}
"""Examples of each split."""


class DrawnScenes(tfds.core.GeneratorBasedBuilder):
    """Pictures of 64 pixels with captions, and a question and its answer for each."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The first."}

    def _info(self) -> Any:
        text = tfds.features.Text()
        features = {"image": tfds.features.Image(shape=(64, 64, 3)), "caption": text, "prompt": text, "answer": text}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes of two to four objects drawn from a seed, with captions, questions and answers.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(split, count) for name, (split, count) in COUNTS.items()}

    def _generate_examples(self, split: Split, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        source = Scenes("question", examples=max(count, 1), held_out=count).source(split)
        for index in range(count):
            example, file = source[index], io.BytesIO()
            Image.fromarray(example["image"]).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, **{name: example[name] for name in ("caption", "prompt", "answer")}}
