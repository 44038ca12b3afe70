"""Writing with a model that is ready to use."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmm.distributed.sharding import on_mesh, replicated
from jmm.errors import UserError
from jmm.generation.sample import Sampling
from jmm.generation.write import Length, Written, read, write
from jmm.model import Model
from jmm.protocol import Writer, inputs_of


def generate(
    model: Model,
    batch: Mapping[str, Any],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Sequence[int] = (),
    pad_id: int = 0,
    seed: int = 0,
) -> Written:
    """New tokens for every row of a batch. A row's tokens do not depend on the other rows, but for rounding and draws.

    >>> written = generate(model, {"text": ids, "text_mask": mask}, max_new_tokens=20, stop_ids=[50256])
    >>> written.ids[0, : written.lengths[0]]

    Args:
      model: one that writes: a decoder, or an encoder–decoder.
      batch: the fields that it reads; padding may stand on either side of a text.
      max_new_tokens: the most tokens of a row.
      temperature, top_k, top_p: those of `Sampling`; by default the most probable token is taken always.
      stop_ids: tokens that end a row; it goes into the row as its last.
      pad_id: what stands behind the end of a row.
      seed: of the draws.

    Raises:
      UserError: the model writes no text, reads none of the fields, or has no room for so many tokens; a prompt is
        empty; a number is out of its range.
    """
    module = model.module
    if not isinstance(module, Writer):
        raise UserError(f"{type(module).__name__} writes no text; a decoder or an encoder–decoder does")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    try:
        sampling = Sampling(temperature, top_k, top_p)
    except ValueError as error:
        raise UserError(str(error)) from error
    inputs = inputs_of(module, batch, "prefill")
    if not inputs:
        raise UserError(f"{type(module).__name__} reads none of {', '.join(batch) or 'no fields'}")
    rows = len(next(iter(inputs.values())))
    with on_mesh(model.mesh):
        prompts = read(module, model.unstacked, model.place(inputs), max_new_tokens)
        _check(module, np.asarray(jax.device_put(prompts.lengths, replicated(model.mesh)))[:rows], max_new_tokens)
        length = Length(max_new_tokens, tuple(stop_ids), pad_id)
        written, _ = write(module, model.unstacked, prompts, jax.random.key(seed), sampling, length)
        written = jax.device_put(written, replicated(model.mesh))
    return Written(*(each[:rows] for each in written))


def complete(
    model: Model,
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """What the model writes after each text, or in answer to it if it is an encoder–decoder, until the end mark of its
    tokenizer.

    >>> complete(jmm.load("gpt2"), ["The capital of France is"], max_new_tokens=5)

    Arguments and errors as of `generate`.
    """
    tokenizer = model.preprocess.tokenizer
    end = tokenizer.end_id
    batch = model.preprocess(texts=texts)
    if isinstance(model.module, Writer) and model.module.continues:
        batch["text_mask"] = _without_end(batch["text"], batch["text_mask"], end)
    written = generate(
        model,
        batch,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=() if end is None else (end,),
        pad_id=tokenizer.pad_id,
        seed=seed,
    )
    ids, lengths = (np.asarray(each) for each in written)
    return [tokenizer.decode(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]


def _check(module: Writer, lengths: np.ndarray, max_new_tokens: int) -> None:
    """Raises UserError for an empty prompt, and for more tokens than the cache may hold."""
    if not lengths.all():
        raise UserError(f"row {np.argmin(lengths)} holds no token; a prompt needs at least one")
    # The last new token is never read.
    longest, limit = int(lengths.max()), module.max_tokens
    if limit is not None and longest + max_new_tokens - 1 > limit:
        raise UserError(
            f"{type(module).__name__} holds {limit} tokens: behind a prompt of {longest} there is room for "
            f"{limit - longest + 1} new ones, not {max_new_tokens}"
        )


def _without_end(text: np.ndarray, mask: np.ndarray, end_id: int | None) -> np.ndarray:
    """The mask without the end mark that a tokenizer may have put behind each text; a text of nothing else keeps it."""
    place = np.arange(mask.shape[1])
    last = np.max(np.where(mask, place, -1), axis=1, keepdims=True)
    marks = (place == last) & (text == end_id) & (mask.sum(axis=1, keepdims=True) > 1)
    return mask & ~marks
