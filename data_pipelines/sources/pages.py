"""Interleaved pages: text with pictures in their places, as Flamingo, Kosmos and the like read them.

    pages/
      pages.jsonl     one page a line: {"content": ["Two boats at dawn", {"image": "a.jpg"}, "and a bridge", …]}
      a.jpg

A string is text; an object names a picture by its path from the folder on. The layout of OBELICS and MMC4, two lists
`texts` and `images` of one length, in each place of which one is null, is read too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.sources.lines import JSONLines
from data_pipelines.sources.records import Raw, Record

IMAGE = "<image>"
"""Where a picture stands in the text of a page."""


@dataclass(frozen=True)
class Pages:
    """A folder of pages and their pictures."""

    path: str
    """The folder; it holds pages.jsonl."""

    def open(self) -> Raw:
        """Records with `text`, in which `<image>` stands for each picture, and `images`, a list of them in their order.

        Raises:
          UserError: no folder, no pages.jsonl, or no page in it.
        """
        return PageRecords(Path(self.path), JSONLines(Path(self.path) / "pages.jsonl"))


@dataclass(frozen=True)
class PageRecords:
    """Reads pages when they are asked for."""

    folder: Path
    lines: JSONLines

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, index: int) -> str:
        """Its number."""
        return f"page {index} of {self.lines.path}"

    def __getitem__(self, index: int) -> Record:
        text, names = parts(self.lines[index])
        return {"text": text, "images": [files.read_below(str(self.folder), name) for name in names]}


def parts(page: dict[str, Any]) -> tuple[str, list[str]]:
    """The text of a page with its marks, and the names of its pictures.

    Raises:
      Broken: it is no page, or has neither text nor picture.
    """
    content = page.get("content")
    if content is None and isinstance(page.get("texts"), list) and isinstance(page.get("images"), list):
        if len(page["texts"]) != len(page["images"]):
            raise Broken("field", "texts and images are of different lengths")
        content = [
            {"image": image} if text is None else text
            for text, image in zip(page["texts"], page["images"], strict=True)
        ]
    if not isinstance(content, list):
        raise Broken("field", "a page has no content, nor texts and images")
    words, names = [], []
    for part in content:
        name = part.get("image") if isinstance(part, dict) else None
        if isinstance(part, str):
            # A mark that the page itself writes is no picture.
            words.append(part.replace(IMAGE, " ").strip())
        elif isinstance(name, str):
            words.append(IMAGE)
            names.append(name)
        else:
            raise Broken("field", f"a page holds {json.dumps(part)[:60]}, neither a text nor the name of an image")
    text = " ".join(filter(None, words))
    if not text:
        raise Broken("caption", "a page is empty")
    return text, names
