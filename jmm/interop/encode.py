"""A dataset's pictures as the codes of a tokenizer, written once."""

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax

from data_pipelines.codes import DESCRIPTION, TOKENIZER, packed
from data_pipelines.protocol import Dataset, Source, Split
from data_pipelines.stream import codes_of
from jmm.errors import UserError
from jmm.generation import images
from jmm.interop.convert import new_folder, save
from jmm.model import Model
from jmm.protocol import forward


def encode(model: Model, dataset: Dataset, folder: Path, count: int | None = None) -> dict[str, int]:
    """Writes what `data_pipelines.codes.Codes` reads, and beside it the tokenizer itself, so that what is drawn in its
    codes can be shown; gives the number of examples of each split.

    Args:
      model: a tokenizer, whose preprocessing brings the pictures to its size.
      dataset: its examples are taken in their order, without augmentation; of codes, or a mixture of their tasks,
        what they are made of.
      folder: new.
      count: of training examples; None: all.

    Raises:
      UserError: the model makes no codes, an example has no picture, the folder exists or cannot be written.
    """
    shape = _grid(model)
    made = codes_of(dataset)
    dataset = made.data if made else dataset
    with new_folder(folder) as beside:
        sources = {split: dataset.source(split) for split in get_args(Split)}
        limits = {split: len(source) for split, source in sources.items()}
        limits["train"] = min(limits["train"], limits["train"] if count is None else count)
        for split, source in sources.items():
            _write(model, source, limits[split], beside / f"{split}.array_record")
        config: Any = model.config
        described = {"grid": shape, "num_codes": config.num_codes, "examples": limits}
        described["tokenizer"] = type(model.config).__module__
        save(model, beside / TOKENIZER, "jmm")
        (beside / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return limits


def _grid(model: Model) -> tuple[int, int]:
    spec: Any = model.config.batch_spec(1)
    given = jax.eval_shape(partial(forward, model.module), model.variables, spec) if "image" in spec else {}
    codes = given.get("codes")
    if codes is None or codes.ndim != 3:
        raise UserError(f"{type(model.module).__name__} makes no codes of images; a tokenizer does")
    return codes.shape[1], codes.shape[2]


def _write(model: Model, source: Source, count: int, path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for start in range(0, count, model.batch_size):
        examples = [source[i] for i in range(start, min(start + model.batch_size, count))]
        if any("image" not in example for example in examples):
            raise UserError("an example has no picture that could be encoded")
        pictures = [example["image"] for example in examples]
        for example, codes in zip(examples, images.encode(model, pictures), strict=True):
            writer.write(packed(example, codes))
    writer.close()
