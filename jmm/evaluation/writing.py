"""What a model writes about held-out examples, for the evaluations that compare it with what is right."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import jmm
from data_pipelines.mixture import part_of
from data_pipelines.pipeline import held_out_examples
from data_pipelines.protocol import Dataset, Example
from data_pipelines.stream import codes_of
from jmm.errors import UserError
from jmm.evaluation.pictures import INK, PALE, RIGHT, WRONG
from jmm.generation.images import paint
from jmm.generation.texts import tell, write_texts
from jmm.model import Model


@dataclass(frozen=True)
class Written:
    """One example and what the model wrote about it."""

    example: Example
    """As it is, its image of the model's size."""
    prompt: str
    """What the model was asked."""
    text: str
    """What it wrote."""
    right: tuple[str, ...]
    """What it should have written, any of these."""

    @property
    def exact(self) -> bool:
        """Whether it wrote one of them, to the letter; only spaces may differ."""
        return _spaced(self.text) in map(_spaced, self.right)

    def notes(self, mark: str) -> list[tuple[str, str]]:
        """What is to stand beside its picture: text and colour. `mark` says how right it is, ✗ not at all."""
        wrong = mark == "✗"
        asked = [(self.prompt, PALE)] if self.prompt.strip() else []
        said = (f"{mark} {self.text}", WRONG if wrong else RIGHT)
        return [*asked, said] if self.exact else [*asked, said, (f"true: {self.right[0]}", INK)]


def write_held_out(
    model: Model,
    data: Dataset,
    *,
    part: str = "",
    count: int | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    beams: int = 1,
) -> list[Written]:
    """What the model writes about held-out examples: it is asked the prompt of each, or for a caption.

    Args:
      model: one that writes.
      data: has prompts with answers, or captions.
      part: of a mixture.
      count: of examples; None: all.
      prompt: asked in place of the examples' own.
      max_new_tokens: the most tokens; None: as many as it learnt to write.
      beams: hypotheses of a beam search; 1: the most probable token is taken always.

    Raises:
      UserError: examples without a text to compare with, or only some of them with a picture; no such part; and as
        `write_texts` does.
    """
    data = part_of(data, part)
    examples = held_out_examples(data, count)
    if not all("answer" in example or "caption" in example for example in examples):
        raise UserError(f"there is nothing to compare with: {type(data).__name__} has no captions and no answers")
    images = [example["image"] for example in examples if "image" in example]
    if images and len(images) < len(examples):
        raise UserError(f"only {len(images)} of {len(examples)} examples have a picture; evaluate the parts one by one")
    asked = [example.get("prompt", model.preprocess.describe) if prompt is None else prompt for example in examples]
    if all("codes" in example for example in examples):
        codes = np.stack([example["codes"] for example in examples])
        texts = tell(model, codes, asked, max_new_tokens=max_new_tokens, beams=beams)
    else:
        texts = write_texts(model, images or None, asked, max_new_tokens=max_new_tokens, beams=beams)
    return [Written(*each, right_of(each[0])) for each in zip(examples, asked, texts, strict=True)]


def pictures_of(data: Dataset, written: Sequence[Written]) -> list[np.ndarray | None]:
    """The picture of each example, if it has one; of codes, what their tokenizer makes of them."""
    codes = codes_of(data)
    if codes is None or not all("codes" in each.example for each in written):
        return [each.example.get("image") for each in written]
    return list(paint(jmm.load(codes.tokenizer), np.stack([each.example["codes"] for each in written])))


def right_of(example: Example) -> tuple[str, ...]:
    """What may be written about an example: its answers, or its caption."""
    return tuple(example.get("answers", ())) or (example["answer"] if "answer" in example else example["caption"],)


def by_kind(written: Sequence[Written], figure: str, score: Callable[[Sequence[Written]], float]) -> dict[str, float]:
    """A figure of all examples and, where there are several kinds, of each: `figure@kind`."""
    kinds: dict[str, list[Written]] = defaultdict(list)
    for each in written:
        kinds[each.example.get("kind", "")].append(each)
    each_kind = {f"{figure}@{kind}": score(some) for kind, some in sorted(kinds.items()) if kind and len(kinds) > 1}
    return {figure: score(written)} | each_kind


def exact_share(written: Sequence[Written]) -> float:
    """The share that is right to the letter."""
    return float(np.mean([each.exact for each in written]))


def _spaced(text: str) -> str:
    return " ".join(text.split())
