"""Scenes drawn from a seed, with captions, questions and answers: unlimited, and the same on every machine.

Two to four objects of seven shapes, eight colours, two sizes and three materials; some scenes carry a printed word.
Training never sees certain combinations (`scene_world`: pairs of colour and shape, pairs of shapes that stand in a
relation, printed words), and every held-out scene holds at least one of them, so that a score measures whether a model
puts together what it knows. `python -m data_pipelines.scenes --png FILE` draws a sheet of examples.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import UInt8

from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Example, Source, Split
from data_pipelines.scene_drawing import draw
from data_pipelines.scene_grammar import LANGUAGES, NAMED, PLAIN, Language, caption
from data_pipelines.scene_questions import KINDS
from data_pipelines.scene_tasks import ASK, CAPTIONS, DESCRIBE, WITHOUT_IMAGE, Task, fields, vocabulary
from data_pipelines.scene_world import COUNTS, MATERIALS, Dice, Scene, Thing, draw_scene
from data_pipelines.words import WordTokenizer
from jmm.errors import UserError

SMALLEST, SMALLEST_WITH_WORDS = 32, 48
"""Pixels a side at which shapes differ, and letters have eight rows."""


@dataclass(frozen=True)
class Scenes:
    """Pictures of objects, and one task that asks about them. Scene i of a split depends on the seed, the split and i;
    tasks and languages with the same share of words see the same scenes."""

    task: Task = "caption"
    """caption: a picture and its caption. text_alone: the caption. The others have a prompt and an answer; alt_text
    asks for the caption, split_caption for its second part, read for the printed word, objects for a list of all
    objects; object_question asks which objects there are, question whatever can be asked; span leaves words out of a
    caption without a picture."""
    language: Language = "en"
    """Of captions, questions and answers."""
    kinds: tuple[str, ...] = KINDS
    """Of questions; where a scene allows none of them, it is asked whether an object exists."""
    counts: tuple[int, ...] = COUNTS
    """A scene has as many objects as one of these, from 2 to 4."""
    plain: bool = False
    """All objects are matte, and no text says so: a large red circle above a small blue square."""
    image_size: int = 64
    """Side of the picture."""
    text_length: int = 48
    """Tokens a text, marks included."""
    target_length: int | None = None
    """Tokens of an answer that is a field of its own; None: it stands behind its prompt."""
    image_optional: bool = False
    """For mixtures with tasks on text alone: all batches say which rows have a picture."""
    words: float = 0.25
    """The share of scenes with a printed word; where the task is to read, all have one."""
    examples: int = 1 << 20
    """Training scenes before they come again."""
    held_out: int = 400
    """Held-out scenes."""
    seed: int = 0
    """Of the scenes, any whole number from 0 on."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of its range."""
        if self.task not in get_args(Task) or self.language not in LANGUAGES:
            raise UserError(f"scenes have no task {self.task!r} in {self.language!r}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise UserError(f"kinds of questions about scenes are {', '.join(KINDS)}, not {self.kinds}")
        if not self.counts or not set(self.counts) <= set(COUNTS):
            raise UserError(f"scenes have from {min(COUNTS)} to {max(COUNTS)} objects, not {self.counts}")
        if self.plain and self.task not in CAPTIONS and (self.task != "question" or "material" in self.kinds):
            raise UserError(f"plain scenes have captions, and questions of other kinds than material, not {self.task}")
        if not 0 <= self.words <= 1:
            raise UserError(f"words is a share of the scenes, from 0 to 1, not {self.words}")
        printed = self.words > 0 or self.task == "read"
        least, what = (SMALLEST_WITH_WORDS, " with printed words") if printed else (SMALLEST, "")
        if self.image_size < least:
            raise UserError(f"the image_size of scenes{what} must be at least {least}, not {self.image_size}")
        if min(self.seed, self.examples, self.held_out) < 0:
            raise UserError("seed, examples and held_out of scenes must be at least 0")

    def source(self, split: Split) -> Source:
        """Examples with `image` (uint8 [S, S, 3]) unless the task is on text alone, `scene`, `box` (name and corners
        of each object and of the word), `caption`, and the texts of the task."""
        return SceneSource(self, split)

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """Unchanged: no scene is seen twice before the others have been."""
        return example

    def preprocessor(self) -> Preprocess:
        """The tokenizer knows the words of all tasks and languages, so that any of them can be mixed."""
        return Preprocess(
            image_size=(self.image_size, self.image_size),
            image_optional=self.image_optional,
            resize="squash",
            text_length=self.text_length,
            target_length=self.target_length,
            tokenizer=tokenizer(),
            describe="" if self.task in CAPTIONS else DESCRIBE,
            ask=ASK,
        )

    def see(self, image: UInt8[np.ndarray, "S S 3"]) -> tuple[Thing, ...]:
        """The objects in a picture, found without a model (`scene_checker`)."""
        from data_pipelines.scene_checker import see

        return see(image)

    def true_of(self, caption: str, seen: tuple[Thing, ...]) -> bool:
        """Whether objects are all that an English caption says, and stand as it says."""
        from data_pipelines.scene_checker import true_of

        return true_of(caption, seen)


@dataclass(frozen=True)
class SceneSource:
    """Draws scenes when they are asked for."""

    data: Scenes
    split: Split

    def __len__(self) -> int:
        return self.data.held_out if self.split == "held_out" else self.data.examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        held_out = self.split == "held_out"
        dice = Dice(self.data.seed, held_out, index)
        word = dice.roll(1 << 20) < (1.0 if self.data.task == "read" else self.data.words) * (1 << 20)
        materials = MATERIALS[:1] if self.data.plain else MATERIALS
        scene = draw_scene(dice, held_out=held_out, word=word, counts=self.data.counts, materials=materials)
        example = Example()
        if self.data.task not in WITHOUT_IMAGE:
            example["image"], scene = draw(scene, self.data.image_size)
            example["box"] = boxes(scene)
        texts = {"caption": caption(scene, self.data.language, PLAIN if self.data.plain else NAMED)}
        if self.data.task not in CAPTIONS:
            texts |= fields(self.data.task, scene, dice, self.data.language, held_out, self.data.kinds)
        return example | {"scene": scene} | texts


def boxes(scene: Scene) -> list[tuple[str, tuple[float, float, float, float]]]:
    """What was drawn where, by name: colour and shape of an object, or the printed word."""
    found = [(f"{thing.colour} {thing.shape}", thing.box) for thing in scene.things]
    found += [(scene.word.text, scene.word.box)] if scene.word else []
    return [(name, box) for name, box in found if box]


@cache
def tokenizer() -> WordTokenizer:
    """The words of all scenes."""
    return WordTokenizer(vocabulary())


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a sheet of examples as a picture."""
    from data_pipelines.scene_sheet import contact_sheet  # matplotlib's font, which training has no need of

    parser = argparse.ArgumentParser(prog="python -m data_pipelines.scenes", description=main.__doc__)
    parser.add_argument("--png", type=Path, required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--count", type=int, default=24, help="examples (default: %(default)s)")
    parser.add_argument("--split", choices=get_args(Split), default="train", help="(default: %(default)s)")
    parser.add_argument("--task", choices=get_args(Task), default="caption", help="(default: %(default)s)")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="(default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    data = Scenes(task=options.task, language=options.language, image_size=options.image_size, seed=options.seed)
    source = data.source(options.split)
    contact_sheet(options.png, [source[i] for i in range(min(options.count, len(source)))])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
