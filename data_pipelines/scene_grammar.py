"""Objects and their places in English, German and Russian words, rightly inflected."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from data_pipelines.scene_world import Scene, Thing, relation

Language = Literal["en", "de", "ru"]
LANGUAGES: tuple[Language, ...] = ("en", "de", "ru")

Case = Literal["nominative", "genitive", "dative", "accusative", "instrumental"]

Article = Literal["a", "the", ""]

ADJECTIVES = {
    "small": ("klein", "маленьк"),
    "large": ("groß", "больш"),
    "red": ("rot", "красн"),
    "yellow": ("gelb", "жёлт"),
    "green": ("grün", "зелён"),
    "blue": ("blau", "син"),
    "purple": ("violett", "фиолетов"),
    "brown": ("braun", "коричнев"),
    "black": ("schwarz", "чёрн"),
    "turquoise": ("türkis", "бирюзов"),
    "matte": ("matt", "матов"),
    "shiny": ("glänzend", "блестящ"),
    "striped": ("gestreift", "полосат"),
}
"""Stems in German and Russian."""

GERMAN_NOUNS = {
    "circle": ("m", "Kreis", "Kreis", "Kreise"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke"),
    "star": ("m", "Stern", "Stern", "Sterne"),
    "cross": ("n", "Kreuz", "Kreuz", "Kreuze"),
    "heart": ("n", "Herz", "Herzen", "Herzen"),
    "diamond": ("f", "Raute", "Raute", "Rauten"),
    "object": ("n", "Objekt", "Objekt", "Objekte"),
}
"""Gender, nominative and accusative, dative; plural."""

RUSSIAN_NOUNS = {
    "circle": ("m", "круг", "круга", "кругом", "кругов"),
    "square": ("m", "квадрат", "квадрата", "квадратом", "квадратов"),
    "triangle": ("m", "треугольник", "треугольника", "треугольником", "треугольников"),
    "star": ("f", "звезда", "звезды", "звездой", "звёзд"),
    "cross": ("m", "крест", "креста", "крестом", "крестов"),
    "heart": ("n", "сердце", "сердца", "сердцем", "сердец"),
    "diamond": ("m", "ромб", "ромба", "ромбом", "ромбов"),
    "object": ("m", "предмет", "предмета", "предметом", "предметов"),
}
"""Gender, nominative, genitive, instrumental; genitive plural."""

GERMAN_ARTICLES = {
    ("a", "nominative"): {"m": "ein", "n": "ein", "f": "eine"},
    ("a", "accusative"): {"m": "einen", "n": "ein", "f": "eine"},
    ("a", "dative"): {"m": "einem", "n": "einem", "f": "einer"},
    ("the", "nominative"): {"m": "der", "n": "das", "f": "die"},
    ("the", "dative"): {"m": "dem", "n": "dem", "f": "der"},
}
GERMAN_ENDINGS = {
    ("a", "nominative"): {"m": "er", "n": "es", "f": "e"},
    ("a", "accusative"): {"m": "en", "n": "es", "f": "e"},
    ("the", "nominative"): {"m": "e", "n": "e", "f": "e"},
}
"""Of adjectives behind the article; in the dative all end in -en. Without an article the nominative is as behind `ein`,
and that of the plural ends in -e."""

RUSSIAN_ENDINGS = {
    "hard": {"m": "ый", "n": "ое", "f": "ая", "genitive": "ого", "instrumental": "ым", "plural": "ых"},
    "soft": {"m": "ий", "n": "ее", "f": "яя", "genitive": "его", "instrumental": "им", "plural": "их"},
    "маленьк": {"m": "ий", "n": "ое", "f": "ая", "genitive": "ого", "instrumental": "им", "plural": "их"},
    "больш": {"m": "ой", "n": "ое", "f": "ая", "genitive": "ого", "instrumental": "им", "plural": "их"},
    "блестящ": {"m": "ий", "n": "ее", "f": "ая", "genitive": "его", "instrumental": "им", "plural": "их"},
}
"""Nominative by gender, and of the masculine and neuter the other cases; plural is the genitive's. `-ой`, of soft stems
and after a hushing sound without stress `-ей`, is the feminine's in both other cases."""

PLACES: dict[str, dict[str, tuple[str, Case]]] = {
    "en": {each: (each, "nominative") for each in ("left of", "right of", "above", "below")},
    "de": {
        "left of": ("links von", "dative"),
        "right of": ("rechts von", "dative"),
        "above": ("über", "dative"),
        "below": ("unter", "dative"),
    },
    "ru": {
        "left of": ("слева от", "genitive"),
        "right of": ("справа от", "genitive"),
        "above": ("над", "instrumental"),
        "below": ("под", "instrumental"),
    },
}
"""Words for each relation, and the case that they ask for."""

ASKED_FOR: dict[str, Case] = {"en": "nominative", "de": "accusative", "ru": "nominative"}
"""The case of what a question asks the existence of."""

NAMED = ("size", "colour", "material")
"""What is said of an object before its shape, in this order."""
PLAIN = ("size", "colour")
"""What is said where all are of one material."""

AND = {"en": "and", "de": "und", "ru": "и"}
WITH_THE_WORD = {"en": "with the word", "de": "mit dem Wort", "ru": "со словом"}


def caption(scene: Scene, language: Language, named: Sequence[str] = NAMED) -> str:
    """What there is to see: of two objects how they stand to each other, of more a list in reading order; and the
    printed word. What is said of an object are the properties `named`."""
    things = scene.things
    phrases = [describe(thing, language, named=named) for thing in things]
    how = relation(*things) if len(things) == 2 else None
    if how:
        words, case = PLACES[language][how]
        text = f"{phrases[0]} {words} {describe(things[1], language, case, named)}"
    else:
        text = f"{', '.join(phrases[:-1])} {AND[language]} {phrases[-1]}"
    return f"{text}, {WITH_THE_WORD[language]} {scene.word.text}" if scene.word else text


def describe(thing: Thing, language: Language, case: Case = "nominative", named: Sequence[str] = NAMED) -> str:
    """Size, colour, material and shape: a large red shiny circle."""
    return phrase(language, tuple(getattr(thing, each) for each in named), thing.shape, case, "a")


@lru_cache(maxsize=1 << 15)
def phrase(language: Language, adjectives: tuple[str, ...], noun: str, case: Case, article: Article = "") -> str:
    """A noun with its adjectives, both given in English, in the singular."""
    if language == "en":
        return " ".join(filter(None, (article, *adjectives, noun)))
    if language == "de":
        gender, other, dative, _ = GERMAN_NOUNS[noun]
        ending = "en" if case == "dative" else GERMAN_ENDINGS[article or "a", case][gender]
        front = GERMAN_ARTICLES[article, case][gender] if article else ""
        words = [_german(each, ending) for each in adjectives]
        return " ".join(filter(None, (front, *words, dative if case == "dative" else other)))
    gender, *forms = RUSSIAN_NOUNS[noun]
    form = forms[("nominative", "genitive", "instrumental").index(case)]
    return " ".join((*(_russian(each, gender, case) for each in adjectives), form))


@lru_cache(maxsize=1 << 12)
def plural(language: Language, adjectives: tuple[str, ...], noun: str) -> str:
    """Several objects as they stand behind `how many`: in German the nominative, in Russian the genitive."""
    if language == "en":
        return " ".join((*adjectives, "crosses" if noun == "cross" else f"{noun}s"))
    if language == "de":
        return " ".join((*(_german(each, "e") for each in adjectives), GERMAN_NOUNS[noun][-1]))
    return " ".join((*(_russian(each, "m", "plural") for each in adjectives), RUSSIAN_NOUNS[noun][-1]))


def predicate(language: Language, adjective: str, noun: str) -> str:
    """An adjective that says of an object what it is like; in Russian it has the noun's gender."""
    if language == "ru":
        return _russian(adjective, RUSSIAN_NOUNS[noun][0], "nominative")
    return adjective if language == "en" else ADJECTIVES[adjective][0]


def colour_name(language: Language, colour: str) -> str:
    """The answer to what colour something is; in Russian, where one asks of what colour it is, the genitive."""
    return _russian(colour, "m", "genitive") if language == "ru" else predicate(language, colour, "object")


def what_shape(language: Language, adjective: str) -> str:
    """An adjective behind `which shape is`; in Russian it has the gender of the word for shape."""
    return _russian(adjective, "f", "nominative") if language == "ru" else predicate(language, adjective, "object")


def _russian(adjective: str, gender: str, case: Case | Literal["plural"]) -> str:
    """In the case, or in the genitive plural."""
    stem = ADJECTIVES[adjective][1]
    endings = RUSSIAN_ENDINGS.get(stem, RUSSIAN_ENDINGS["soft" if stem == "син" else "hard"])
    if case == "nominative":
        return stem + endings[gender]
    if case == "plural" or gender != "f":
        return stem + endings[case]
    return stem + ("ей" if endings["n"] == "ее" else "ой")


def _german(adjective: str, ending: str) -> str:
    return ADJECTIVES[adjective][0] + ending
