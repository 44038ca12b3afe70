"""What is asked about a scene and what should be written: the tasks of PaLI's mixture (Chen et al. 2023, section 3.2).

Prompts name the task, the language and, behind it, the mark of the text that is to be filled in.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from data_pipelines.scene_grammar import (
    ADJECTIVES,
    AND,
    LANGUAGES,
    PLACES,
    WITH_THE_WORD,
    Article,
    Case,
    Language,
    caption,
    colour_name,
    phrase,
    plural,
    predicate,
    what_shape,
)
from data_pipelines.scene_questions import KINDS, TEMPLATES, YES_NO, Asker
from data_pipelines.scene_world import COLOURS, SHAPES, Dice, Scene
from data_pipelines.words import SIGNS

Task = Literal[
    "caption", "text_alone", "alt_text", "split_caption", "read", "question", "objects", "object_question", "span"
]

CAPTIONS = ("caption", "text_alone")
"""Tasks without a prompt."""

WITHOUT_IMAGE = ("text_alone", "span")
"""Tasks on text alone."""

MARK = "<extra_id_{}>"
"""Stands for text that was left out (Raffel et al. 2020, section 3.1.4)."""

GAP = MARK.format(0)
ALT_TEXT = "Generate the alt_text in {} at {}: {}"
READ = "Generate the ocr_text in {}: " + GAP
ANSWER = "Answer in {}: {} " + GAP
LIST = "List the objects present:"
IS_THERE, WHICH_OF = "Is {} in the image?", "Which of {} are in the image?"
DESCRIBE, ASK = ALT_TEXT.format("EN", 0, GAP), ANSWER.format("EN", "{}")
"""The prompts for a caption and for a question of a user."""

LEFT_OUT, SPAN = 0.15, 3
"""The share of words that span corruption leaves out, and how many of them stand together (Xue et al. 2021)."""

CASES: dict[Language, tuple[tuple[Case, Article], ...]] = {
    "en": (("nominative", "a"), ("nominative", "the")),
    "de": (
        ("nominative", "a"),
        ("accusative", "a"),
        ("dative", "a"),
        ("nominative", "the"),
        ("dative", "the"),
    ),
    "ru": (("nominative", ""), ("genitive", ""), ("instrumental", "")),
}
"""Forms of nouns in captions and questions."""

Fields = dict[str, Any]


def fields(
    task: Task, scene: Scene, dice: Dice, language: Language, kept_out_too: bool, kinds: tuple[str, ...] = KINDS
) -> Fields:
    """The texts of a task that has a prompt: `prompt`, `answer`, all right `answers`, and their `kind`."""
    kind, prompt, answer = PROMPTS[task](Asker(scene, dice, language, kept_out_too, kinds))
    return {"prompt": prompt, "answer": answer, "answers": (answer,), "kind": kind}


def _alt_text(asker: Asker) -> tuple[str, str, str]:
    return "alt_text", ALT_TEXT.format(asker.language.upper(), 0, GAP), caption(asker.scene, asker.language)


def _split_caption(asker: Asker) -> tuple[str, str, str]:
    """The caption from a random word on; the prompt holds what stands before, and how many words these are."""
    words = caption(asker.scene, asker.language).split()
    start = 1 + asker.dice.roll(len(words) - 1)
    before = f"{' '.join(words[:start])} {GAP}"
    return "split_caption", ALT_TEXT.format(asker.language.upper(), start, before), " ".join(words[start:])


def _read(asker: Asker) -> tuple[str, str, str]:
    if asker.scene.word is None:
        raise ValueError("there is nothing to read: the scene has no printed word")
    return "read", READ.format(asker.language.upper()), asker.scene.word.text


def _question(asker: Asker) -> tuple[str, str, str]:
    asked = asker.ask()
    return asked.kind, ANSWER.format(asker.language.upper(), asked.text), asked.answer


def _objects(asker: Asker) -> tuple[str, str, str]:
    answer = ", ".join(_name(asker, thing.colour, thing.shape) for thing in asker.scene.things)
    return "objects", ANSWER.format(asker.language.upper(), LIST), answer


def _object_question(asker: Asker) -> tuple[str, str, str]:
    """Whether an object is in the picture, or which of several are (Piergiovanni et al. 2022)."""
    thing = asker.dice.choose(asker.scene.things)
    present, absent = _name(asker, thing.colour, thing.shape), _name(asker, *asker.absent_pair())
    language = asker.language.upper()
    if asker.dice.roll(2):
        there = asker.dice.roll(2) == 0
        question = IS_THERE.format(present if there else absent)
        return "is_there", ANSWER.format(language, question), YES_NO[asker.language][0 if there else 1]
    others = {_name(asker, other.colour, other.shape) for other in asker.scene.things} - {present}
    second = asker.dice.choose([absent, *sorted(others)])
    third = _name(asker, *asker.absent_pair())
    listed = asker.dice.shuffled(tuple(dict.fromkeys((present, second, third))))
    answer = ", ".join(name for name in listed if name in {present, *others})
    return "which_of", ANSWER.format(language, WHICH_OF.format(", ".join(listed))), answer


def _span(asker: Asker) -> tuple[str, str, str]:
    """A caption with some words left out, and these behind the marks of their places."""
    words, dice = caption(asker.scene, asker.language).split(), asker.dice
    missing = max(1, round(LEFT_OUT * len(words)))
    count = -(-missing // SPAN)
    ends = [*sorted(dice.shuffled(range(1, missing))[: count - 1]), missing]
    before = sorted(dice.shuffled(range(len(words) - missing + 1))[:count])
    kept, left_out, start, last = list[str](), list[str](), 0, 0
    for i, (end, stays) in enumerate(zip(ends, before, strict=True)):
        # Words that stay are counted apart from those left out: together they say where the span begins.
        kept += [*words[start + last : start + stays], MARK.format(i)]
        left_out += [MARK.format(i), *words[start + stays : end + stays]]
        start, last = end, stays
    kept += words[start + last :]
    return "span", " ".join(kept), " ".join([*left_out, MARK.format(count)])


def _name(asker: Asker, colour: str, shape: str) -> str:
    return phrase(asker.language, (colour,), shape, "nominative")


PROMPTS: dict[str, Callable[[Asker], tuple[str, str, str]]] = {
    "alt_text": _alt_text,
    "split_caption": _split_caption,
    "read": _read,
    "question": _question,
    "objects": _objects,
    "object_question": _object_question,
    "span": _span,
}
"""Each task's kind, prompt and answer."""


@cache
def vocabulary() -> tuple[str, ...]:
    """All words of captions, prompts and answers in every language, but for printed words: these are spelled. The order
    is that of a trained model's embeddings, so what is new comes last."""
    texts = [*map(str, range(100)), *map(MARK.format, range(10)), *map(str.upper, LANGUAGES)]
    texts += [ALT_TEXT, READ, ANSWER, LIST, IS_THERE, WHICH_OF]
    for language in LANGUAGES:
        texts += [*TEMPLATES[language].values(), *YES_NO[language], AND[language], WITH_THE_WORD[language]]
        texts += [words for words, _ in PLACES[language].values()]
        texts += _inflected(language)
    spaced = "".join(" " if letter in SIGNS else letter for letter in " ".join(texts))
    return tuple(dict.fromkeys(word for word in spaced.split() if word != "{}"))


def _inflected(language: Language) -> list[str]:
    """Adjectives and nouns in every form of the grammar."""
    adjectives, texts = tuple(ADJECTIVES), []
    for noun in (*SHAPES, "object"):
        for case, article in CASES[language]:
            texts.append(phrase(language, adjectives, noun, case, article))
        texts += [plural(language, adjectives, noun), *(predicate(language, each, noun) for each in adjectives)]
    texts += [colour_name(language, each) for each in COLOURS]
    return texts + [what_shape(language, each) for each in COLOURS]
