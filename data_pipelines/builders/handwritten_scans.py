"""The handwritten scans as a dataset of TFDS: grey pictures with classes that have names.

    tfds build data_pipelines/builders/handwritten_scans.py --file_format=array_record --data_dir=DIR

gives DIR/handwritten_scans/1.0.0; otherwise as `drawn_scenes`. It needs the extra `quickstart`.
"""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.digits import NAMES, Digits
from data_pipelines.protocol import Split


class HandwrittenScans(tfds.core.GeneratorBasedBuilder):
    """Digits of 8 × 8 pixels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The first."}

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=list(NAMES)),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 handwritten digits that come with scikit-learn, dark on white, with captions.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples("train"), "test": self._generate_examples("held_out")}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        source = Digits(image_size=8).source(split)
        for index in range(len(source)):
            example, file = source[index], io.BytesIO()
            Image.fromarray(example["image"][:, :, 0]).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": example["label"], "caption": example["caption"]}
