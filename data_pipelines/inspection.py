"""What a dataset holds, and what is wrong with it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.broken import Broken
from data_pipelines.convert import MANIFEST, checked
from data_pipelines.protocol import Example
from data_pipelines.scene_sheet import CELL, contact_sheet
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Fields, Raw
from jmm.errors import UserError

LISTED = 100
"""Broken records that a person is shown; `as_json` has all."""

LONGEST_TEXT = 160
"""Letters of a text on the sheet."""


@dataclass
class Inspection:
    """What was found."""

    layout: str
    records: int
    read: int = 0
    """How many of the records were read."""
    fields: Counter[str] = field(default_factory=Counter)
    """In how many of them each field of an example is."""
    names: Counter[str] = field(default_factory=Counter)
    """The same by the names on disk."""
    sizes: dict[str, list[float]] = field(default_factory=dict)
    """Of each field that has one: sides of images in pixels, letters, samples."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Reason and sentence."""

    def lines(self) -> list[str]:
        """As a person reads it."""
        found = [f"{self.layout}: {self.records:,} records, of which {self.read:,} were read"]
        for name, count in sorted(self.fields.items()):
            sizes = self.sizes.get(name)
            span = f"   {min(sizes):g} to {max(sizes):g} {UNITS[name]}, median {np.median(sizes):g}" if sizes else ""
            found.append(f"  {name:8} in {count:,}{span}")
        if unused := sorted(set(self.names) - {name for names in vars(Fields()).values() for name in _tuple(names)}):
            found.append(f"  not used: {', '.join(unused)}")
        reasons = Counter(reason for reason, _ in self.broken)
        found.append(f"  broken   {len(self.broken):,}" + "".join(f", {count} {why}" for why, count in reasons.items()))
        found += [f"    {reason}: {sentence}" for reason, sentence in self.broken[:LISTED]]
        if len(self.broken) > LISTED:
            found.append(f"    and {len(self.broken) - LISTED:,} more")
        if self.names and not self.fields:
            found.append("  no name is one that training looks for; set them: --data.fields.image NAME, …")
        return found


UNITS = {
    "image": "pixels a shorter side",
    "caption": "letters",
    "text": "letters",
    "audio": "samples",
    "video": "frames",
}


def inspect(
    source: str, *, split: str = "train", count: int = 1000, png: Path | None = None, cells: int = 24
) -> Inspection:
    """Reads `count` records that lie evenly over all of them (0: every one), and draws some of them on a sheet.

    Raises:
      UserError: no such dataset, or the sheet cannot be written.
    """
    layout = records(source, split)
    raw = layout.open()
    found = Inspection(type(layout).__name__, len(raw))
    if (Path(source) / MANIFEST).is_file():
        found.broken += [("record", sentence) for sentence in checked(Path(source))]
    examples: list[Example] = []
    for index in _evenly(len(raw), count):
        found.read += 1
        if (example := _one(raw, index, found)) is not None and len(examples) < cells:
            examples.append(_thumbnail(example))
    if png is not None:
        if not examples:
            (_, first), *_ = found.broken or [("", "there is none")]
            raise UserError(f"{source} has no record that could be drawn: {found.read} were read; the first: {first}")
        contact_sheet(png, examples)
    return found


def _evenly(total: int, count: int) -> list[int]:
    return list(range(total)) if not 0 < count < total else np.linspace(0, total - 1, count).astype(int).tolist()


def _one(raw: Raw, index: int, found: Inspection) -> Example | None:
    try:
        record = raw[index]
        example = Fields().example(record)
    except Broken as error:
        found.broken.append((error.reason, f"{raw.where(index)}: {error}"))
        return None
    found.fields.update(example.keys())
    found.names.update(record.keys())
    for name, value in example.items():
        if name in UNITS:
            size = min(value.shape[:2]) if name == "image" else len(value)
            found.sizes.setdefault(name, []).append(size)
    return example


def _thumbnail(example: Example) -> Example:
    """What of an example can be drawn: its picture on a square, and its texts and numbers."""
    several = example["video"] if "video" in example else example.get("images", [])
    pictures = [example["image"]] if "image" in example else list(several)
    texts = [str(example[name]) for name in ("caption", "text") if name in example]
    texts += [f"{example['prompt']} → {example.get('answer', '')}"] if "prompt" in example else []
    texts += [f"label {example['label']}"] if "label" in example else []
    texts += [f"{len(example['audio']):,} samples"] if "audio" in example else []
    sheet: dict[str, Any] = {"caption": " ".join(texts)[:LONGEST_TEXT]}
    return sheet | ({"image": _square(pictures[0])} if pictures else {})


def _square(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.repeat(image, 3 // image.shape[2], axis=2) if image.shape[2] == 1 else image)
    if (factor := CELL // max(picture.size)) > 1:
        picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((CELL, CELL))
    paper = Image.new("RGB", (CELL, CELL), "white")
    paper.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return np.asarray(paper)


def _tuple(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


def as_json(found: Inspection) -> Mapping[str, Any]:
    """The same as plain values."""
    sizes = {name: [min(each), float(np.median(each)), max(each)] for name, each in found.sizes.items()}
    broken = [{"reason": reason, "message": sentence} for reason, sentence in found.broken]
    return {**vars(found), "fields": dict(found.fields), "names": dict(found.names), "sizes": sizes, "broken": broken}
