"""Texts with something left out, and what a model should write there: the tasks of T5, UL2 and BERT on ids."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jmm.errors import UserError

DENSITY, SPAN = 0.15, 3.0
"""The share of tokens that T5 leaves out, and the mean length of a span of them (Raffel et al. 2020, section 3.1.4)."""

SHARE, MASKED, RANDOM = 0.15, 0.8, 0.1
"""The share of tokens that BERT predicts; of these, those that become the mask and those that become any other token.
The rest stays as it is (Devlin et al. 2019, section 3.1)."""


class Corrupted(NamedTuple):
    """A text in two parts that together hold each of its tokens once, in order."""

    inputs: list[int]
    """What is read."""
    targets: list[int]
    """What is written."""


class Masked(NamedTuple):
    """A text of which some tokens are to be guessed."""

    inputs: Int[np.ndarray, "L"]
    """What is read."""
    targets: Int[np.ndarray, "L"]
    """The token that stood there, or −1 where nothing is predicted."""


def span_counts(length: int, density: float = DENSITY, mean_span: float = SPAN) -> tuple[int, int]:
    """How many of `length` tokens are left out, and in how many spans: round(length · density), but at least one token
    and not all of them, and round(tokens / mean_span), but at least one span and a token kept before each. Halves are
    rounded to the even number. Of fewer than two tokens nothing is left out.

    The inputs of `corrupt_spans` are thus of length − tokens + spans ids, and the targets of tokens + spans, and one
    more where they are `closed`: all texts of one length give the same shapes.

    Raises:
      UserError: a density outside (0, 1), or a span shorter than one token.
    """
    if not 0 < density < 1:
        raise UserError(f"the share of tokens that is left out must lie between 0 and 1, not {density}")
    if mean_span < 1:
        raise UserError(f"a span that is left out is at least one token long, not {mean_span}")
    if length < 2:
        return 0, 0
    tokens = min(max(round(length * density), 1), length - 1)
    return tokens, min(max(round(tokens / mean_span), 1), length - tokens)


def span_mask(
    length: int, rng: np.random.Generator, density: float = DENSITY, mean_span: float = SPAN
) -> Bool[np.ndarray, "L"]:
    """True where a token is left out. Kept and left-out stretches take turns, beginning with a kept one; each of the
    two counts is cut at random, all ways equally likely (T5's `random_spans_noise_mask`).

    Raises:
      UserError: as `span_counts`.
    """
    tokens, spans = span_counts(length, density, mean_span)
    if not spans:
        return np.zeros(length, bool)
    stretches = np.stack([_parts(length - tokens, spans, rng), _parts(tokens, spans, rng)], axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, stretches)


def _parts(total: int, count: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Positive numbers, `count` of them, of the sum `total`."""
    cuts = 1 + rng.choice(total - 1, count - 1, replace=False)
    return np.diff(np.sort(cuts), prepend=0, append=total)


def corrupt_spans(
    ids: Sequence[int],
    sentinels: Sequence[int],
    rng: np.random.Generator,
    density: float = DENSITY,
    mean_span: float = SPAN,
    closed: bool = True,
) -> Corrupted:
    """T5's span corruption (Raffel et al. 2020, section 3.1.4): each span that is left out is one sentinel in the
    inputs, and the targets are those sentinels, each with its span behind it.

    T5's sentinels are the last ids of the vocabulary, the last first: range(size − 1, size − 101, −1). The paper ends
    the targets with one more sentinel (`closed`); T5's code does not, as its texts all end with a span. `ids` bear no
    marks; an end goes behind both results.

    Raises:
      UserError: fewer sentinels than spans, a sentinel in the text, or as `span_counts`.
    """
    mask = span_mask(len(ids), rng, density, mean_span)
    # A span begins where the mask rises; a text begins with what is kept.
    starts = np.flatnonzero(mask & ~np.roll(mask, 1))
    if len(sentinels) < len(starts) + closed:
        needed = len(starts) + closed
        raise UserError(f"a text of {len(ids)} tokens needs {needed} sentinels, and there are {len(sentinels)}")
    if not set(sentinels).isdisjoint(ids):
        raise UserError(
            f"a text holds the sentinel {min(set(sentinels) & set(ids))}, so its spans cannot be told apart"
        )
    inputs, targets, last = list[int](), list[int](), 0
    for sentinel, start in zip(sentinels, starts.tolist(), strict=False):
        end = start + int(np.argmin(np.append(mask[start:], False)))
        inputs += [*ids[last:start], sentinel]
        targets += [sentinel, *ids[start:end]]
        last = end
    return Corrupted([*inputs, *ids[last:]], targets + list(sentinels[len(starts) : len(starts) + closed]))


def prefix_split(ids: Sequence[int], rng: np.random.Generator) -> Corrupted:
    """A text cut in two at a random place, neither part empty: prefix language modelling (Raffel et al. 2020, section
    3.2.3), UL2's S-denoiser (Tay et al. 2023, section 3.1.2).

    Raises:
      UserError: fewer than two tokens.
    """
    if len(ids) < 2:
        raise UserError(f"a text is cut in two between its tokens, so it needs at least two, not {len(ids)}")
    place = int(rng.integers(1, len(ids)))
    return Corrupted(list(ids[:place]), list(ids[place:]))


def mask_tokens(
    ids: Sequence[int],
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
    special: Collection[int] = (),
    share: float = SHARE,
    words: Sequence[int] | None = None,
) -> Masked:
    """BERT's masked tokens (Devlin et al. 2019, section 3.1): of the tokens that are not `special` (marks and padding),
    round(share · count), but at least one, are to be predicted. Each of these becomes `mask_id` with a probability of
    80%, any id of the vocabulary that is neither special nor the mask with 10%, and stays as it is with 10%.

    `words` numbers the word to which each token belongs. Then whole words are chosen, as in the code beside the paper:
    in a random order, passing over those that would make the tokens too many, so that they may also be fewer.

    Raises:
      UserError: a share outside (0, 1], words that are not one a token, or no id to put in a token's place.
    """
    if not 0 < share <= 1:
        raise UserError(f"the share of tokens that are predicted must lie between 0 and 1, not {share}")
    if words is not None and len(words) != len(ids):
        raise UserError(f"each of {len(ids)} tokens needs the number of its word, and there are {len(words)} numbers")
    text, kept_out = np.asarray(ids, np.int32).reshape(-1), {*special, mask_id}
    places = np.flatnonzero(~np.isin(text, list(kept_out)))
    chosen = _whole_words(places, np.arange(len(text)) if words is None else np.asarray(words), share, rng)
    draw = rng.random(len(chosen))
    drawn = _any_id(len(chosen), vocab_size, kept_out, rng)
    inputs, targets = text.copy(), np.full_like(text, -1)
    targets[chosen] = text[chosen]
    inputs[chosen] = np.where(draw < MASKED, mask_id, np.where(draw < MASKED + RANDOM, drawn, text[chosen]))
    return Masked(inputs, targets)


def _whole_words(
    places: Int[np.ndarray, "n"], words: Int[np.ndarray, "L"], share: float, rng: np.random.Generator
) -> Int[np.ndarray, "m"]:
    """Those of `places` that are to be predicted, in the order of the text."""
    numbers, word, sizes = np.unique(words[places], return_inverse=True, return_counts=True)
    room, taken = max(1, round(share * len(places))), np.zeros(len(numbers), bool)
    for i in rng.permutation(len(numbers)):
        if sizes[i] <= room:
            taken[i] = True
            room -= sizes[i]
    return places[taken[word]]


def _any_id(count: int, vocab_size: int, kept_out: Collection[int], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Ids below `vocab_size`, equally likely, none of `kept_out`."""
    inside = sorted(i for i in kept_out if 0 <= i < vocab_size)
    if len(inside) >= vocab_size:
        raise UserError(f"a vocabulary of {vocab_size} tokens that are all special has none to put in another's place")
    drawn = rng.integers(vocab_size - len(inside), size=count)
    for i in inside:  # the numbers of the ids that are left, in order, become those ids
        drawn += drawn >= i
    return drawn
