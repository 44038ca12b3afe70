"""Questions about a scene that have one right answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipelines.scene_grammar import (
    ASKED_FOR,
    PLACES,
    Case,
    Language,
    colour_name,
    phrase,
    plural,
    predicate,
    what_shape,
)
from data_pipelines.scene_world import (
    APART,
    COLOURS,
    MATERIALS,
    OPPOSITES,
    SHAPES,
    Dice,
    Scene,
    Thing,
    pairs,
    relation_kept_out,
    relations,
)

TEMPLATES = {
    "en": {
        "exist": "is there {}?",
        "count": "how many {} are there?",
        "colour": "what colour is {}?",
        "shape": "which shape is {}?",
        "size": "is {} {} or {}?",
        "material": "is {} {}, {} or {}?",
        "relation": "is {} {} {}?",
        "neighbour": "which shape is {} {}?",
        "read": "what word is written?",
    },
    "de": {
        "exist": "gibt es {}?",
        "count": "wie viele {} gibt es?",
        "colour": "welche Farbe hat {}?",
        "shape": "welche Figur ist {}?",
        "size": "ist {} {} oder {}?",
        "material": "ist {} {}, {} oder {}?",
        "relation": "ist {} {} {}?",
        "neighbour": "welche Figur ist {} {}?",
        "read": "welches Wort steht da?",
    },
    "ru": {
        "exist": "есть ли здесь {}?",
        "count": "сколько здесь {}?",
        "colour": "какого цвета {}?",
        "shape": "какая фигура {}?",
        "size": "{} {} или {}?",
        "material": "{} {}, {} или {}?",
        "relation": "{} {} {}?",
        "neighbour": "какая фигура {} {}?",
        "read": "какое слово написано?",
    },
}
KINDS = tuple(TEMPLATES["en"])
YES_NO = {"en": ("yes", "no"), "de": ("ja", "nein"), "ru": ("да", "нет")}

NAMED_BY = (("colour",), ("colour", "size"), ("colour", "material"), ("colour", "size", "material"))
"""What is tried, one after another, to tell an object from the others of its shape."""


@dataclass(frozen=True)
class Question:
    """A question and its answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Asker:
    """Asks about one scene in one language. Each kind of question gives None where the scene does not allow it."""

    scene: Scene
    dice: Dice
    language: Language
    kept_out_too: bool
    """Whether questions may name combinations that training never sees. Those of training name none, not even to deny
    it: there the answer would always be no."""
    kinds: tuple[str, ...] = KINDS
    """Of the questions."""

    def ask(self) -> Question:
        """A question of one of the kinds, each as likely as the others as far as the scene allows it; where it allows
        none of them, whether an object is there."""
        for kind in self.dice.shuffled(self.kinds):
            question = ASK[kind](self)
            if question:
                return question
        return self.exist()

    def exist(self) -> Question:
        """Half the objects asked for are there; most of the others share colour or shape with one that is."""
        there = self.dice.roll(2) == 0
        pair = self.dice.choose([_pair(thing) for thing in self.scene.things]) if there else self.absent_pair()
        name = phrase(self.language, pair[:1], pair[1], ASKED_FOR[self.language], "a")
        return self._question("exist", self._yes(there), name)

    def absent_pair(self) -> tuple[str, str]:
        """Colour and shape of an object that is not there."""
        present = {_pair(thing) for thing in self.scene.things}
        absent = [pair for pair in pairs(self.kept_out_too) if pair not in present]
        colours, shapes = zip(*present, strict=True)
        alike = [pair for pair in absent if pair[0] in colours or pair[1] in shapes]
        return self.dice.choose(alike if self.dice.roll(4) else absent)

    def count(self) -> Question:
        """Of all objects, of those of a colour, or of a shape; mostly of ones that are there."""
        what = self.dice.choose(("colour", "shape", "colour", "shape", ""))
        if not what:
            return self._question("count", str(len(self.scene.things)), plural(self.language, (), "object"))
        values = [getattr(thing, what) for thing in self.scene.things]
        value = self.dice.choose(values if self.dice.roll(4) else COLOURS if what == "colour" else SHAPES)
        name = ((value,), "object") if what == "colour" else ((), value)
        return self._question("count", str(values.count(value)), plural(self.language, *name))

    def colour(self) -> Question | None:
        """Of an object that is told from the others without its colour."""
        thing = self._any_thing()
        name = self._name(thing, ((), ("size",), ("material",), ("size", "material")))
        return self._question("colour", colour_name(self.language, thing.colour), name) if name else None

    def shape(self) -> Question | None:
        """Of the only object of a colour."""
        thing = self._any_thing()
        if sum(other.colour == thing.colour for other in self.scene.things) > 1:
            return None
        answer = phrase(self.language, (), thing.shape, "nominative")
        return self._question("shape", answer, what_shape(self.language, thing.colour))

    def size(self) -> Question | None:
        """Large or small."""
        return self._which("size", ("large", "small"), (("colour",), ("colour", "material")))

    def material(self) -> Question | None:
        """Matte, shiny or striped."""
        return self._which("material", MATERIALS, (("colour",), ("colour", "size")))

    def relation(self) -> Question | None:
        """Whether two objects that are related stand so, or the other way round."""
        related = self._related()
        if related is None:
            return None
        first, how, second = related
        true = self.dice.roll(2) == 0
        asked = how if true else OPPOSITES[how]
        if not self.kept_out_too and relation_kept_out(first.shape, asked, second.shape):
            return None
        words, case = PLACES[self.language][asked]
        names = self._name(first), self._name(second, case=case)
        return self._question("relation", self._yes(true), names[0], words, names[1]) if all(names) else None

    def neighbour(self) -> Question | None:
        """The shape of the only object on one side of another."""
        related = self._related()
        if related is None:
            return None
        first, how, second = related
        words, case = PLACES[self.language][how]
        name = self._name(second, case=case)
        if sum(_on_side(other, how, second) for other in self.scene.things) > 1 or not name:
            return None
        return self._question("neighbour", phrase(self.language, (), first.shape, "nominative"), words, name)

    def read(self) -> Question | None:
        """The printed word."""
        return self._question("read", self.scene.word.text) if self.scene.word else None

    def _question(self, kind: str, answer: str, *words: str) -> Question:
        return Question(kind, TEMPLATES[self.language][kind].format(*words), answer)

    def _yes(self, yes: bool) -> str:
        return YES_NO[self.language][0 if yes else 1]

    def _any_thing(self) -> Thing:
        return self.dice.choose(self.scene.things)

    def _related(self) -> tuple[Thing, str, Thing] | None:
        """Two objects and how the first stands to the second; None where no two are related."""
        found = relations(self.scene)
        found += [(j, OPPOSITES[how], i) for i, how, j in found]
        if not found:
            return None
        i, how, j = self.dice.choose(found)
        return self.scene.things[i], how, self.scene.things[j]

    def _which(self, kind: str, options: Sequence[str], by: Sequence[tuple[str, ...]]) -> Question | None:
        thing = self._any_thing()
        name = self._name(thing, by)
        words = [predicate(self.language, option, thing.shape) for option in options]
        answer = predicate(self.language, getattr(thing, kind), thing.shape)
        return self._question(kind, answer, name, *words) if name else None

    def _name(self, thing: Thing, by: Sequence[tuple[str, ...]] = NAMED_BY, case: Case = "nominative") -> str:
        """The object with the first of these sets of adjectives that no other object of its shape shares; empty where
        none tells it from all others."""
        for attributes in by:
            alike = [
                all(getattr(other, each) == getattr(thing, each) for each in ("shape", *attributes))
                for other in self.scene.things
            ]
            if sum(alike) == 1:
                order = [each for each in ("size", "colour", "material") if each in attributes]
                adjectives = tuple(getattr(thing, each) for each in order)
                return phrase(self.language, adjectives, thing.shape, case, "" if self.language == "ru" else "the")
        return ""


def _pair(thing: Thing) -> tuple[str, str]:
    return thing.colour, thing.shape


def _on_side(other: Thing, how: str, thing: Thing) -> bool:
    """Whether an object stands on a side of another, straight or slanting."""
    down, across = other.centre[0] - thing.centre[0], other.centre[1] - thing.centre[1]
    return {"left of": -across, "right of": across, "above": -down, "below": down}[how] >= APART


ASK: dict[str, Callable[[Asker], Question | None]] = {kind: getattr(Asker, kind) for kind in KINDS}
