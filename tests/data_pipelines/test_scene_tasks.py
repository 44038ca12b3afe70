"""The prompts and answers of each task, taken apart again."""

import re

import pytest

from data_pipelines.scene_grammar import LANGUAGES, caption
from data_pipelines.scene_questions import KINDS
from data_pipelines.scene_tasks import ASK, DESCRIBE, PROMPTS, fields, vocabulary
from data_pipelines.scene_world import COLOURS, SHAPES, Dice, draw_scene, pair_kept_out
from data_pipelines.words import SIGNS

CAPITALS = {"en": "EN", "de": "DE", "ru": "RU"}


def examples(task, language="en", held_out=False, number=150):
    """(scene, fields) of a task with a prompt."""
    for i in range(number):
        scene = draw_scene(Dice(8, i), held_out=held_out, word=task == "read" or i % 4 == 0)
        yield scene, fields(task, scene, Dice(9, i), language, held_out)


@pytest.mark.parametrize("task", PROMPTS)
def test_fields(task):
    for _, example in examples(task, number=30):
        assert example.keys() == {"prompt", "answer", "answers", "kind"}
        assert example["answers"] == (example["answer"],)
        assert example["answer"]
        assert example["kind"] in {"question": KINDS, "object_question": ("is_there", "which_of")}.get(task, (task,))


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_whole_and_in_part(language):
    for scene, example in examples("alt_text", language):
        assert example["prompt"] == f"Generate the alt_text in {CAPITALS[language]} at 0: <extra_id_0>"
        assert example["answer"] == caption(scene, language)
    starts = set()
    for scene, example in examples("split_caption", language):
        pattern = rf"Generate the alt_text in {CAPITALS[language]} at (\d+): (.*) <extra_id_0>"
        position, before = re.fullmatch(pattern, example["prompt"]).groups()
        assert f"{before} {example['answer']}" == caption(scene, language)
        assert len(before.split()) == int(position)
        starts.add(int(position) / len(caption(scene, language).split()))
    assert min(starts) < 0.1
    assert max(starts) > 0.9


def test_reading():
    for scene, example in examples("read", "ru"):
        assert (example["prompt"], example["answer"]) == ("Generate the ocr_text in RU: <extra_id_0>", scene.word.text)
    with pytest.raises(ValueError, match="nothing to read"):
        fields("read", draw_scene(Dice(0), held_out=False, word=False), Dice(0), "en", False)


def names(scene):
    return [f"{thing.colour} {thing.shape}" for thing in scene.things]


def test_listing_objects():
    for scene, example in examples("objects"):
        assert example["prompt"] == "Answer in EN: List the objects present: <extra_id_0>"
        assert example["answer"].split(", ") == names(scene)
    german = {name for _, example in examples("objects", "de") for name in example["answer"].split(", ")}
    assert {"roter Stern", "rotes Quadrat", "grüne Raute"} <= german


@pytest.mark.parametrize("held_out", [False, True])
def test_which_objects_there_are(held_out):
    counts = {"yes": 0, "no": 0, 1: 0, 2: 0}
    asked = set()
    for scene, example in examples("object_question", held_out=held_out, number=400):
        there = re.fullmatch(r"Answer in EN: Is (.*) in the image\? <extra_id_0>", example["prompt"])
        which = re.fullmatch(r"Answer in EN: Which of (.*) are in the image\? <extra_id_0>", example["prompt"])
        if there:
            asked.add(there[1])
            assert example["answer"] == ("yes" if there[1] in names(scene) else "no")
            counts[example["answer"]] += 1
        else:
            listed = which[1].split(", ")
            asked.update(listed)
            assert len(set(listed)) == len(listed) in (2, 3)
            assert example["answer"].split(", ") == [name for name in listed if name in names(scene)]
            counts[len(example["answer"].split(", "))] += 1
    assert min(counts.values()) > 30
    kept = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if pair_kept_out(colour, shape)}
    assert kept <= asked if held_out else not kept & asked


@pytest.mark.parametrize("language", LANGUAGES)
def test_spans_fit_into_their_places(language):
    shares, counts, first = [], set(), set()
    for scene, example in examples("span", language):
        words = caption(scene, language).split()
        left_out = re.split(r"<extra_id_(\d)>", example["answer"])
        # Between the marks stand the spans, behind the last one nothing.
        assert [int(number) for number in left_out[1::2]] == list(range(len(left_out) // 2))
        assert (left_out[0], left_out[-1]) == ("", "")
        spans = [span.strip() for span in left_out[2:-1:2]]
        restored = example["prompt"]
        for i, span in enumerate(spans):
            assert span
            restored = restored.replace(f"<extra_id_{i}>", span)
        assert restored == " ".join(words)
        shares.append(sum(len(span.split()) for span in spans) / len(words))
        counts.add(len(spans))
        first.add(example["prompt"].startswith("<extra_id_0>"))
        assert "<extra_id_0> <extra_id_1>" not in example["prompt"]
    assert 0.1 < sum(shares) / len(shares) < 0.2
    assert counts == ({1} if language == "ru" else {1, 2})  # without articles, captions are shorter
    assert first == {False, True}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", PROMPTS)
def test_the_vocabulary_has_every_word_but_printed_ones(task, language):
    known = set(vocabulary())
    for scene, example in examples(task, language, held_out=True):
        texts = [caption(scene, language), example["prompt"], example["answer"]]
        words = re.split(rf"[ {SIGNS}]+", " ".join(texts).strip())
        assert {word for word in words if word} - known <= ({scene.word.text} if scene.word else set())


def test_a_users_prompts_are_those_of_training():
    assert next(examples("alt_text"))[1]["prompt"] == DESCRIBE
    _, example = next(examples("question"))
    assert example["prompt"] == ASK.format(re.fullmatch(r"Answer in EN: (.*) <extra_id_0>", example["prompt"])[1])
