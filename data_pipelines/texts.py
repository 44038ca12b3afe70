"""The texts of records, without their pictures."""

from collections.abc import Iterator
from dataclasses import replace

from data_pipelines.broken import Broken
from data_pipelines.sources.records import Fields, Raw

TEXTS = ("caption", "text", "prompt", "answer")


def texts(raw: Raw, fields: Fields | None = None) -> Iterator[str]:
    """All texts of all records that can be read, in their order. Pictures and sounds are not decoded."""
    fields = fields or Fields()
    alone = replace(fields, image=(), images=(), video=(), audio=(), label=(), needed=())
    for index in range(len(raw)):
        try:
            example = alone.example(raw[index])
        except Broken:
            continue
        yield from (example[name] for name in TEXTS if name in example)
