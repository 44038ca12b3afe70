"""Strings for pictures and strings."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np
from jaxtyping import Int

from data_pipelines.stream import TELL
from jmm.errors import UserError
from jmm.generation.generate import generate, writer
from jmm.model import Model
from jmm.protocol import inputs_of


class Manner(TypedDict, total=False):
    """How tokens are found: the arguments of `generate` of these names."""

    beams: int
    length_penalty: float
    temperature: float
    top_k: int | None
    top_p: float | None


def write_texts(
    model: Model,
    images: Sequence[np.ndarray] | None,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    **manner: Unpack[Manner],
) -> list[str]:
    """What the model writes about each picture when it is asked, until the end mark of its tokenizer: a caption, an
    answer, a text read. It continues its prompt, or answers to it if it reads one text and writes another.

    >>> write_texts(model, [photo], model.preprocess.ask.format("what colour is the cube?"), beams=4)
    ['red']

    Args:
      model: one that writes, and reads what is given.
      images: uint8 [h, w, c] of any sizes; None: the prompts are all there is.
      prompts: one for every picture, or the same for all.
      max_new_tokens: the most tokens of a text; None: as many as stood in the texts that the model learnt, that is
        `target_length`, or what `text_length` leaves behind the longest prompt.
      batch_size: rows at a time, the last batch filled up, so that one shape is compiled; None: that of the model.
      seed: of the draws; batch n draws with `seed` + n.
      manner: beams, length_penalty, temperature, top_k and top_p of `generate`.

    Raises:
      UserError: the prompts are neither one nor as many as the pictures; the model does not read pictures, or texts;
        and as `generate` does.
    """
    if isinstance(prompts, str):
        prompts = [prompts] * (1 if images is None else len(images))
    if images is not None and len(images) != len(prompts):
        raise UserError(f"{len(images)} pictures need as many prompts, or one for all, not {len(prompts)}")
    asked = _asked(model, prompts, images is not None)
    room = _room(model, asked) if max_new_tokens is None else max_new_tokens

    def given(places: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: each[places] for name, each in asked.items()}
        return batch if images is None else batch | model.preprocess(images=[images[place] for place in places])

    return _written(model, given, len(prompts), batch_size, room, seed, manner)


def tell(
    model: Model,
    codes: Int[np.ndarray, "N h w"],
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    **manner: Unpack[Manner],
) -> list[str]:
    """What a model of text, image and right text writes behind the codes of each picture: its caption, or the answer to
    the prompt before it.

    Arguments as of `write_texts`.

    Raises:
      UserError: the model reads no text behind an image; and as `generate` does.
    """
    preprocess, room = model.preprocess, model.preprocess.target_length
    if not {"codes", "target"} <= set(inputs_of(writer(model), {"codes": 0, "target": 0}, "prefill")) or room is None:
        raise UserError(f"{type(model.module).__name__} writes nothing behind the codes of a picture; a RuDOLPH does")
    start = preprocess.pair("", TELL)
    begin = start["target"][start["target_mask"]][:-1]
    rows = len(prompts)
    asked = preprocess(texts=prompts) | {"codes": codes.reshape(rows, -1)}
    asked["target"] = np.broadcast_to(begin, (rows, len(begin)))
    room = room - len(begin) if max_new_tokens is None else max_new_tokens

    def given(places: np.ndarray) -> dict[str, np.ndarray]:
        return {name: each[places] for name, each in asked.items()}

    return _written(model, given, rows, None, room, seed, manner)


def _written(
    model: Model,
    given: Callable[[np.ndarray], dict[str, np.ndarray]],
    rows: int,
    batch_size: int | None,
    room: int,
    seed: int,
    manner: Manner,
) -> list[str]:
    """What stands behind what is given in each row, up to its end mark, `batch_size` rows at a time."""
    tokenizer, texts = model.preprocess.tokenizer, []
    size, end = min(batch_size or model.batch_size, rows), tokenizer.end_id
    for number, start in enumerate(range(0, rows, size)):
        batch = given(np.minimum(np.arange(start, start + size), rows - 1))  # of the last batch, the last row again
        written = generate(
            model,
            batch,
            max_new_tokens=room,
            stop_ids=() if end is None else (end,),
            pad_id=tokenizer.pad_id,
            seed=seed + number,
            **manner,
        )
        ids, lengths = (np.asarray(each)[: rows - start] for each in written)
        texts += [tokenizer.decode(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]
    return texts


def complete(
    model: Model, texts: Sequence[str], *, max_new_tokens: int, seed: int = 0, **manner: Unpack[Manner]
) -> list[str]:
    """What the model writes after each text, or in answer to it if it is an encoder–decoder, until the end mark of its
    tokenizer.

    >>> complete(jmm.load("gpt2"), ["The capital of France is"], max_new_tokens=5)

    Arguments and errors as of `write_texts`.
    """
    return write_texts(model, None, texts, max_new_tokens=max_new_tokens, seed=seed, **manner)


def _asked(model: Model, prompts: Sequence[str], with_images: bool) -> dict[str, np.ndarray]:
    """The prompts as fields of a batch; without their end mark if the model goes on behind them.

    Raises:
      UserError: the model writes nothing, or does not read what is given.
    """
    module, preprocess = writer(model), model.preprocess
    given = {"image": with_images, "text": any(prompts)}
    read = inputs_of(module, given, "prefill")
    for name, is_given in given.items():
        if is_given and name not in read:
            raise UserError(f"{type(module).__name__} reads no {name}")
    if "text" not in read:
        return {}
    asked = preprocess(texts=prompts)
    if module.continues:
        asked["text_mask"] = _without_end(asked["text"], asked["text_mask"], preprocess.tokenizer.end_id)
    return asked


def _room(model: Model, asked: Mapping[str, np.ndarray]) -> int:
    """Tokens of the longest text that the model learnt to write behind these prompts."""
    preprocess = model.preprocess
    if preprocess.target_length is not None:
        return preprocess.target_length
    read = asked["text_mask"].sum(axis=1).max() if asked and writer(model).continues else 0
    return max(1, preprocess.text_length - int(read))


def _without_end(text: np.ndarray, mask: np.ndarray, end_id: int | None) -> np.ndarray:
    """The mask without the end mark that a tokenizer may have put behind each text; a text of nothing else keeps it."""
    place = np.arange(mask.shape[1])
    last = np.max(np.where(mask, place, -1), axis=1, keepdims=True)
    marks = (place == last) & (text == end_id) & (mask.sum(axis=1, keepdims=True) > 1)
    return mask & ~marks
