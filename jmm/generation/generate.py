"""Writing with a model that is ready to use."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmm.distributed.sharding import on_mesh, replicated
from jmm.errors import UserError
from jmm.generation.beam import Beams, search
from jmm.generation.sample import Sampling
from jmm.generation.write import Length, Written, read, write
from jmm.model import Model
from jmm.protocol import Writer, inputs_of


def generate(
    model: Model,
    batch: Mapping[str, Any],
    *,
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 1.0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    stop_ids: Sequence[int] = (),
    pad_id: int = 0,
    seed: int = 0,
) -> Written:
    """New tokens for every row of a batch. A row's tokens do not depend on the other rows, but for rounding and draws.

    >>> written = generate(model, {"text": ids, "text_mask": mask}, max_new_tokens=20, stop_ids=[50256])
    >>> written.ids[0, : written.lengths[0]]

    Args:
      model: one that writes: a decoder, an encoder–decoder, or one that writes of pictures.
      batch: the fields that it reads; padding may stand on either side of a text.
      max_new_tokens: the most tokens of a row.
      beams: more than one searches for the most probable text with so many hypotheses (`jmm.generation.beam`).
      length_penalty: that of `Beams`.
      temperature, top_k, top_p, guidance: those of `Sampling`; by default the most probable token is taken always.
      stop_ids: tokens that end a row; it goes into the row as its last.
      pad_id: what stands behind the end of a row.
      seed: of the draws.

    Raises:
      UserError: the model writes no text, reads none of the fields, lacks one, or has no room for so many tokens; a
        prompt is empty; a number is out of its range; tokens are to be drawn in a beam search.
    """
    module = writer(model)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    manner = _manner(beams, length_penalty, temperature, top_k, top_p, guidance)
    inputs = _inputs(module, batch)
    rows = len(next(iter(inputs.values())))
    with on_mesh(model.mesh):
        prompts = read(module, model.unstacked, model.place(inputs), max_new_tokens)
        _check(module, np.asarray(jax.device_put(prompts.lengths, replicated(model.mesh)))[:rows], max_new_tokens)
        length = Length(max_new_tokens, tuple(stop_ids), pad_id)
        if isinstance(manner, Beams):
            written, _ = search(module, model.unstacked, prompts, manner, length)
        else:
            written, _ = write(module, model.unstacked, prompts, jax.random.key(seed), manner, length)
        written = jax.device_put(written, replicated(model.mesh))
    return Written(*(each[:rows] for each in written))


def writer(model: Model) -> Any:
    """The module of a model, a `Writer`.

    Raises:
      UserError: it writes no text.
    """
    if not isinstance(model.module, Writer):
        raise UserError(f"{type(model.module).__name__} writes no text; a decoder or an encoder–decoder does")
    return model.module


def _inputs(module: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are read before writing, if they are all there."""
    inputs, name = inputs_of(module, batch, "prefill"), type(module).__name__
    if not inputs:
        raise UserError(f"{name} reads none of {', '.join(batch) or 'no fields'}")
    fields = inspect.signature(module.prefill).parameters.values()
    needed = (each.name for each in fields if each.default is each.empty and each.kind is each.KEYWORD_ONLY)
    missing = [each for each in needed if each not in inputs]
    if missing:
        raise UserError(f"{name} cannot write without {' and '.join(missing)}")
    return inputs


def _manner(
    beams: int,
    length_penalty: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float,
) -> Sampling | Beams:
    """How the tokens are found, if that can be."""
    try:
        sampling, search = Sampling(temperature, top_k, top_p, guidance), Beams(beams, length_penalty)
    except ValueError as error:
        raise UserError(str(error)) from error
    if beams == 1:
        if length_penalty != 1:
            raise UserError(f"a length_penalty of {length_penalty} compares texts of a search: beams must be 2 or more")
        return sampling
    if sampling != Sampling():
        wrong = f"temperature must be 0, not {temperature}" if temperature else f"guidance must be 1, not {guidance}"
        raise UserError(f"a search with {beams} beams draws no tokens: {wrong}")
    return search


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
