"""Several short sequences in one row of a batch, so that little of it is padding (Krell et al. 2021, Efficient Sequence
Packing without Cross-contamination; for images of any size Dehghani et al. 2023, Patch n' Pack, section 2).

    lengths [N], capacity ─► first_fit ─► rows [N] ─► pack ─► text     [B,L]   a a a b b c c c c 0
                                                             segment  [B,L]   1 1 1 2 2 3 3 3 3 0
                                                             position [B,L]   0 1 2 0 1 0 1 2 3 0

A model that reads `segment` and `position` (`masks.segments`) computes for each sequence what it would compute for it
alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from data_pipelines.naflex import patchify
from data_pipelines.preprocess import Arrays
from jmm.errors import UserError


def first_fit(
    lengths: Int[np.ndarray, "N"] | Int[np.ndarray, "N F"], capacity: int | tuple[int, ...]
) -> Int[np.ndarray, "N"]:
    """The row of each sequence, by first-fit decreasing (Johnson 1973, Near-Optimal Bin Packing Algorithms; of several
    features by their sum, Panigrahy et al. 2011, Heuristics for Vector Bin Packing).

    The sequences are taken in descending order of the shares of the capacities that their F lengths take, added up, and
    of equal sums in the order in which they stand. Each goes to the first row with room for all its features, or opens
    a row. Rows are numbered at the end in the order in which their openers stand, so that rows of a list in random
    order are in random order too.

    What is computed is exactly that, but equal sequences that follow one another are placed together, some NumPy
    operations for all of them: they fill the rows with room for one from the first row on. With one feature there are
    at most 11/9 as many rows as in the best packing, and 6/9 more (Dósa 2007).

    Args:
      lengths: tokens of each sequence; [N,F]: of each of its features (text and image patches), which may be 0.
      capacity: of a row, in tokens; a tuple: of each of the features.

    Raises:
      UserError: a sequence that is longer than a row, or empty; capacities that do not match the features.
    """
    limits = np.asarray((capacity,) if isinstance(capacity, int) else capacity, np.int64)
    table = lengths.astype(np.int64).reshape(len(lengths), lengths.shape[1] if lengths.ndim == 2 else 1)
    _check(table, limits)
    shares = table @ (limits.prod() // limits)  # in units of one over the product, so that they are exact
    order = np.argsort(-shares, kind="stable")
    table = table[order]
    needs = table.tolist()
    ends = np.append(np.flatnonzero((table[1:] != table[:-1]).any(axis=1)) + 1, len(table)) if len(table) else ()
    # Rows that are not open yet have all their room, so that the search needs no case of its own for them.
    room = np.repeat(limits[:, None], len(table), axis=1)
    placed, opened, start = np.zeros(len(table), np.int64), 0, 0
    for end in np.asarray(ends).tolist():
        used = _place(room[:, : opened + end - start], needs[start], placed[start:end])
        opened, start = max(opened, used), end
    opener = np.zeros(opened, np.int64)
    opener[placed[::-1]] = order[::-1]  # the last one written is the first one placed
    number, rows = np.argsort(np.argsort(opener)), np.zeros(len(table), np.int64)
    rows[order] = number[placed]
    return rows


def _place(room: Int[np.ndarray, "F R"], need: list[int], placed: Int[np.ndarray, "n"]) -> int:
    """Writes to `placed` the rows of n sequences that each need `need`, takes their room away, and gives one more than
    the last row of them."""
    fits = room[0] >= need[0]
    for feature in range(1, len(need)):
        fits &= room[feature] >= need[feature]
    if len(placed) == 1:
        row = placed[0] = int(fits.argmax())
        for feature, length in enumerate(need):
            room[feature, row] -= length
        return row + 1
    rows = np.flatnonzero(fits)[: len(placed)]
    wholes = [room[feature, rows] // length for feature, length in enumerate(need) if length]
    each = np.minimum.reduce(wholes)
    taken = np.clip(len(placed) - (np.cumsum(each) - each), 0, each)
    room[:, rows] -= np.asarray(need)[:, None] * taken
    placed[:] = np.repeat(rows, taken)
    return int(placed[-1]) + 1


def _check(lengths: Int[np.ndarray, "N F"], limits: Int[np.ndarray, "G"]) -> None:
    if lengths.shape[1] != len(limits):
        raise UserError(f"sequences of {lengths.shape[1]} features need as many capacities, not {len(limits)}")
    if limits.min(initial=1) < 1:
        raise UserError(f"the capacity of a row must be at least 1, not {limits.min()}")
    for wrong, what in (
        ((lengths > limits).any(axis=1), f"longer than a row, which holds {_said(limits)}"),
        ((lengths < 0).any(axis=1) | (lengths.max(axis=1, initial=0) == 0), "empty"),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            raise UserError(f"sequence {first} with a length of {_said(lengths[first])} is {what}")


def _said(sizes: Int[np.ndarray, "F"]) -> str:
    return " and ".join(map(str, sizes.tolist()))


def pack(examples: Sequence[Arrays], capacity: Mapping[str, int], rows: Int[np.ndarray, "N"] | None = None) -> Arrays:
    """Examples as the rows of a batch; what belongs to one example stands in one row and has one segment id.

    An example has `text` int [l], or `patches` float [n,P] with `patch_position` int [n,2] (row and column of each
    patch, `patches_of`), or both. Fields of a batch, of those features that `capacity` names:

      text int32 [B,L], padded with 0; text_mask bool [B,L]; segment int32 [B,L], from 1 in each row, 0 of padding;
      position int32 [B,L], from 0 in each segment; patches float32 [B,N,P]; patch_segment int32 [B,N], as `segment`;
      patch_position int32 [B,N,2].

    Args:
      examples: what to pack; those of one row stand there in their order.
      capacity: L for `text`, N for `patches`.
      rows: the row of each example; None: as `first_fit` says.

    Raises:
      UserError: nothing to pack, an example that does not fit into a row, or one with as many patches as it has no
        positions for.
    """
    if not examples:
        raise UserError("there is nothing to pack: the list is empty")
    lengths = np.array([[len(example.get(name, ())) for name in capacity] for example in examples])
    rows = first_fit(lengths, tuple(capacity.values())) if rows is None else rows
    order = np.argsort(rows, kind="stable")
    batch: Arrays = {}
    for feature, (name, size) in enumerate(capacity.items()):
        there = [examples[index] for index in order if name in examples[index]]
        batch |= _fields(name, there, _Layout(rows[order], lengths[order, feature], size))
    return batch


class _Layout:
    """Where the tokens of sequences stand that lie row after row: `shape` of the batch, and of each token its place in
    the flat batch, its `segment` and its `position`."""

    def __init__(self, rows: Int[np.ndarray, "N"], lengths: Int[np.ndarray, "N"], capacity: int):
        self.shape = (int(rows[-1]) + 1, capacity)
        first = np.searchsorted(rows, rows)  # the first sequence of each one's row
        before = np.cumsum(lengths) - lengths
        if (before - before[first] + lengths > capacity).any():
            raise UserError(f"the sequences of a row are together longer than it, which holds {capacity}")
        self.position = np.arange(lengths.sum()) - np.repeat(before, lengths)
        self.segment = np.repeat(np.arange(len(rows)) - first + 1, lengths)
        self._flat = np.repeat(rows * capacity + before - before[first], lengths) + self.position

    def spread(self, values: Shaped[np.ndarray, "T *S"], dtype: type) -> Shaped[np.ndarray, "B L *S"]:
        """The tokens at their places, zeros elsewhere."""
        batch = np.zeros((self.shape[0] * self.shape[1], *values.shape[1:]), dtype)
        batch[self._flat] = values
        return batch.reshape(*self.shape, *values.shape[1:])


def _fields(name: str, examples: Sequence[Arrays], layout: _Layout) -> Arrays:
    """The fields of one feature; `examples` are those that have it."""
    segment = layout.spread(layout.segment, np.int32)
    tokens = np.concatenate([example[name] for example in examples]) if examples else np.zeros(0, np.int32)
    if name == "text":
        fields = {"text": layout.spread(tokens, np.int32), "text_mask": segment > 0}
        return fields | {"segment": segment, "position": layout.spread(layout.position, np.int32)}
    if not examples:
        raise UserError("no example has patches; leave them out of the capacity")
    for example in examples:
        if len(example["patch_position"]) != len(example["patches"]):
            counts = f"{len(example['patches'])} patches has {len(example['patch_position'])} positions of patches"
            raise UserError(f"an example with {counts}; each needs one")
    places = np.concatenate([example["patch_position"] for example in examples])
    fields = {"patches": layout.spread(tokens, np.float32), "patch_segment": segment}
    return fields | {"patch_position": layout.spread(places, np.int32)}


def unpack(batch: Arrays) -> list[Arrays]:
    """The examples of a packed batch, row after row, and in a row by their segment ids: what `pack` was given, in
    another order."""
    there = [name for name in ("segment", "patch_segment") if name in batch]
    examples: list[Arrays] = []
    for row in range(len(batch[there[0]])):
        for segment in range(1, max(batch[name][row].max() for name in there) + 1):
            own = {name: batch[name][row] == segment for name in there}
            example = {"text": batch["text"][row][own["segment"]]} if own.get("segment", np.False_).any() else {}
            if own.get("patch_segment", np.False_).any():
                fields = ("patches", "patch_position")
                example |= {name: batch[name][row][own["patch_segment"]] for name in fields}
            examples.append(example)
    return examples


def patches_of(image: Float[np.ndarray, "H W C"], patch_size: int) -> Arrays:
    """An image of any size as what `pack` takes: `patches` [n,P] (`naflex.patchify`) and `patch_position` int32 [n,2],
    the row and the column of each.

    Raises:
      UserError: sides that do not divide by the patch size.
    """
    patches = patchify(image, patch_size)
    grid = (image.shape[0] // patch_size, image.shape[1] // patch_size)
    return {"patches": patches, "patch_position": np.ascontiguousarray(np.indices(grid, np.int32).reshape(2, -1).T)}
