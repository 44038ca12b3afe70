"""The same few records in every layout."""

import csv
import io
import json
import tarfile
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image

from data_pipelines.convert import convert

CAPTIONS = ("two boats at dawn", "a stone bridge", "ein Kreis über dem Quadrat", "три корабля", "the last one")
SIZES = ((8, 6), (6, 8), (16, 16), (5, 9), (7, 7))
COUNT = len(CAPTIONS)


def picture(index):
    """uint8 [h, w, 3]"""
    return np.random.default_rng(index).integers(0, 256, (*SIZES[index], 3), np.uint8)


def encoded(image, kind="PNG", **settings):
    """Its bytes as a file."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **settings)
    return data.getvalue()


def folder_csv(path):
    path.mkdir()
    with (path / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for i, caption in enumerate(CAPTIONS):
            (path / f"{i}.png").write_bytes(encoded(picture(i)))
            writer.writerow([f"{i}.png", caption])
    return str(path)


def folder_jsonl(path):
    path.mkdir()
    lines = []
    for i, caption in enumerate(CAPTIONS):
        (path / f"{i}.png").write_bytes(encoded(picture(i)))
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": caption}))
    (path / "captions.jsonl").write_text("\n".join(lines))
    return str(path)


def add(archive, name, data):
    """A file into a tar archive."""
    about = tarfile.TarInfo(name)
    about.size = len(data)
    archive.addfile(about, io.BytesIO(data))


def tar_shards(path):
    """Two shards; captions as .txt in one and in .json in the other."""
    path.mkdir()
    for shard, places in enumerate((range(3), range(3, COUNT))):
        with tarfile.open(path / f"shard-{shard:03d}.tar", "w") as archive:
            for i in places:
                add(archive, f"./part/{i:06d}.png", encoded(picture(i)))
                if shard:
                    add(archive, f"./part/{i:06d}.json", json.dumps({"caption": CAPTIONS[i]}).encode())
                else:
                    add(archive, f"./part/{i:06d}.txt", CAPTIONS[i].encode())
    return str(path)


def parquet(path):
    import pyarrow
    from pyarrow import parquet

    path.mkdir()
    images = [{"bytes": encoded(picture(i)), "path": None} for i in range(COUNT)]
    for part, places in enumerate((slice(0, 4), slice(4, COUNT))):
        table = pyarrow.table({"image": images[places], "caption": CAPTIONS[places]})
        parquet.write_table(table, path / f"part-{part}.parquet", row_group_size=3)
    return str(path)


@contextmanager
def others_warnings():
    """What other libraries warn of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hugging_face(path):
    with others_warnings():
        import datasets

        images = [Image.fromarray(picture(i)) for i in range(COUNT)]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        whole = datasets.Dataset.from_dict({"image": images, "caption": list(CAPTIONS)}, features=features)
        datasets.DatasetDict({"train": whole}).save_to_disk(str(path), num_shards={"train": 2})
    return str(path)


def tfds(path):
    with others_warnings():
        import tensorflow_datasets as tfds

        class Pairs(tfds.core.GeneratorBasedBuilder):
            """Pictures and captions."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "caption": tfds.features.Text()})
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i, caption in enumerate(CAPTIONS):
                    yield i, {"image": io.BytesIO(encoded(picture(i))), "caption": caption}

        builder = Pairs(data_dir=str(path), file_format="array_record")
        builder.download_and_prepare()
    return str(builder.data_dir)


def array_record(path):
    source = folder_csv(path.with_name("source"))
    convert(source, str(path), 2, workers=1, say=lambda line: None)
    return str(path)


WRITERS = {
    "Folder of CSV": folder_csv,
    "Folder of JSON lines": folder_jsonl,
    "WebDataset": tar_shards,
    "Parquet": parquet,
    "HuggingFace": hugging_face,
    "TFDS": tfds,
    "ArrayRecord": array_record,
}
