"""Losses over all B×B pairs without the [B, B] matrix: computed tile by tile, forgotten, and computed again.

    logits_ij = scale · image_i · text_j + bias                    targets_ij ≥ 0: what belongs together

    softmax   value      ½ mean_i [ H(targets_i·, softmax of row i) + H(targets_·i, softmax of column i) ]
              gradient   D = ½ (softmax of rows + softmax of columns) − targets
    sigmoid   value      1/B Σ_ij softplus(logits_ij) − targets_ij logits_ij
              gradient   D = σ(logits) − targets
    both      gradient   by image: scale/B · D text;  text: scale/B · Dᵀ image;  scale: 1/B Σ_i image_i · (D text)_i

A pass visits every tile once; rows and columns gather their sums on the way. The softmax needs two passes, as D needs
Σ exp of whole rows and columns (by running maximum and sum: Milakov and Gimelshein 2018); the sigmoid needs one. Memory
is O(B·D) and one tile, as in Inf-CL (Cheng et al. 2024).

On a mesh each device keeps its rows of both sides. The columns travel round the ring of devices with the sums they
have gathered: each hop is sent off before the block in hand is computed, and after a whole turn the sums are home.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from jmm.kernels.placement import free_axes

CHUNK = 1024
"""Rows and columns of a tile. Its logits are 4 MB: large enough that adding a tile's gradients to the sums of its rows
and columns costs little beside its products, small enough to stay in the last cache of a CPU."""

LOWEST = -1e30
"""Logit of a pair with padding. Finite, so that it times a target of 0 is 0."""


class Targets(NamedTuple):
    """Which pairs belong together, as the loss weighs them: targets_ij = same_ij (row_weight_i + column_weight_j)."""

    ids: Int[Array, " B"] | None
    """same_ij is 1 where the ids of i and j are equal,"""
    matrix: Shaped[Array, "B B"] | None
    """or is given."""
    row_weight: Float[Array, " B"]
    """Softmax: half the inverse sum of row i of `same`, 0 if that is empty. Sigmoid: ½."""
    column_weight: Float[Array, " B"]
    """The same of the columns."""


class LogSum(NamedTuple):
    """Σ exp as total · exp(peak), which no logit overflows."""

    peak: Float[Array, "..."]
    total: Float[Array, "..."]

    def join(self, other: "LogSum") -> "LogSum":
        """The sum of both."""
        peak = jnp.maximum(self.peak, other.peak)
        return LogSum(peak, self.total * jnp.exp(self.peak - peak) + other.total * jnp.exp(other.peak - peak))


class Side(NamedTuple):
    """The rows of one side that a device holds, in chunks [n, C, …]; one chunk of them lacks the n."""

    vectors: Float[Array, "..."]
    ids: Int[Array, "..."] | None
    weight: Float[Array, "..."]
    real: Bool[Array, "..."] | None
    """False in padding; None where the chunks divide the rows."""
    peak: Float[Array, "..."] | None
    """In the second pass of the softmax: probabilities are share · exp(logits − peak);"""
    share: Float[Array, "..."] | None
    """halved, as two directions make a loss, and 0 for a row without targets, which makes none."""


Tile = Callable[[Float[Array, "R C"], Float[Array, "R C"], Side, Side], tuple[Any, Any]]
"""(logits, targets, rows, columns) → what the tile adds to the sums of its rows and to those of its columns."""


class Grid(NamedTuple):
    """All pairs, as seen by the device that holds `rows`."""

    rows: Side
    columns: Side
    matrix: Shaped[Array, "nC WnC"] | None
    """Its rows of the given targets; W is the number of devices."""
    scale: Float[Array, ""]
    bias: Float[Array, ""]
    axes: tuple[str, ...]
    """Mesh axes that cut the rows."""

    def sweep(self, tile: Tile, row_sums: Any, column_sums: Any) -> tuple[Any, Any]:
        """One pass over all tiles; gives the sums [n, C, …] of this device's rows and columns.

        Both sums start as what joins to nothing.
        """
        ways = lax.axis_size(self.axes) if self.axes else 1
        if ways == 1:
            return self._block(tile, self.columns, 0, row_sums, column_sums)
        ring = [(device, (device - 1) % ways) for device in range(ways)]
        hop = partial(jax.tree.map, lambda x: lax.ppermute(x, self.axes, ring))
        here, empty = lax.axis_index(self.axes), column_sums

        def step(k: Array, carry: tuple[Side, Any, Any]) -> tuple[Side, Any, Any]:
            columns, row_sums, column_sums = carry
            # Both are under way while the block is computed; its own share meets the sums where they arrive.
            coming, arrived = hop(columns), hop(column_sums)
            row_sums, added = self._block(tile, columns, (here + k) % ways, row_sums, empty)
            return coming, row_sums, _join(arrived, added)

        _, row_sums, column_sums = lax.fori_loop(0, ways, step, (self.columns, row_sums, column_sums))
        return row_sums, hop(column_sums)

    def _block(self, tile: Tile, columns: Side, owner: Array | int, row_sums: Any, column_sums: Any) -> tuple[Any, Any]:
        """All tiles of the device's rows with the columns in hand, which belong to device `owner`."""
        chunks = self.rows.weight.shape[0]

        def down(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            rows = _take(self.rows, i)

            def along(j: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                of_rows, column_sums = carry
                here = _take(columns, j)
                added = tile(*self._pairs(rows, here, self._same(rows, here, i, owner * chunks + j)), rows, here)
                return _join(of_rows, added[0]), _put(column_sums, j, _join(_take(column_sums, j), added[1]))

            of_rows, column_sums = lax.fori_loop(0, chunks, along, (_take(carry[0], i), carry[1]))
            return _put(carry[0], i, of_rows), column_sums

        return lax.fori_loop(0, chunks, down, (row_sums, column_sums))

    def _same(self, rows: Side, columns: Side, i: Array, j: Array) -> Array:
        """What belongs together in tile (i, j)."""
        if self.matrix is None:
            assert rows.ids is not None and columns.ids is not None
            return jnp.equal(rows.ids[:, None], columns.ids)
        size = rows.weight.shape[0]
        return lax.dynamic_slice(self.matrix, (i * size, j * size), (size, size))

    def _pairs(self, rows: Side, columns: Side, same: Array) -> tuple[Float[Array, "R C"], Float[Array, "R C"]]:
        """Logits and targets of one tile."""
        product = jnp.einsum("id,jd->ij", rows.vectors, columns.vectors, preferred_element_type=jnp.float32)
        # Fused with what follows, logits could be rounded otherwise than their peak was: 5e-4 for a logit of 1e4.
        logits = lax.optimization_barrier(self.scale * product + self.bias)
        targets = same * (rows.weight[:, None] + columns.weight)
        if rows.real is None or columns.real is None:
            return logits, targets
        real = rows.real[:, None] & columns.real
        return jnp.where(real, logits, LOWEST), jnp.where(real, targets, 0)


def _join(first: Any, second: Any) -> Any:
    return jax.tree.map(
        lambda a, b: a.join(b) if isinstance(a, LogSum) else a + b,
        first,
        second,
        is_leaf=lambda node: isinstance(node, LogSum),
    )


def _take(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _put(tree: Any, index: Array, part: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[index].set(y), tree, part)


# --- what a tile gives ---


def _log_sums(logits: Array, targets: Array, rows: Side, columns: Side) -> tuple[Any, Any]:
    """First pass of the softmax: log-sum-exp of rows and columns, and each row's logits where they should be."""

    def log_sum(axis: int) -> LogSum:
        peak = logits.max(axis, keepdims=True)
        return LogSum(peak.squeeze(axis), jnp.exp(logits - peak).sum(axis))

    return (log_sum(1), jnp.sum(targets * logits, axis=1)), log_sum(0)


def _softmax_gradient(logits: Array, targets: Array, rows: Side, columns: Side) -> tuple[Any, Any]:
    """Second pass of the softmax."""
    assert rows.peak is not None and columns.peak is not None
    assert rows.share is not None and columns.share is not None
    found = rows.share[:, None] * jnp.exp(logits - rows.peak[:, None]) + columns.share * jnp.exp(logits - columns.peak)
    return _products(found - targets, rows, columns)


def _sigmoid_value(logits: Array, targets: Array, rows: Side, columns: Side) -> tuple[Any, Any]:
    """Each row's losses; without loss of digits where a large logit is right."""
    losses = jnp.maximum(logits, 0) - targets * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return losses.sum(1), ()


def _sigmoid_gradient(logits: Array, targets: Array, rows: Side, columns: Side) -> tuple[Any, Any]:
    """The only pass of the sigmoid: value, D summed for the bias, and gradients."""
    small = jnp.exp(-jnp.abs(logits))
    yes, no = jnp.where(logits > 0, 1, small) / (1 + small), jnp.where(logits > 0, small, 1) / (1 + small)
    error = (1 - targets) * yes - targets * no  # σ(logits) − targets, exact where that is close to 0
    of_rows, of_columns = _products(error, rows, columns)
    return (_sigmoid_value(logits, targets, rows, columns)[0], error.sum(1), of_rows), of_columns


def _products(error: Float[Array, "R C"], rows: Side, columns: Side) -> tuple[Float[Array, "R D"], Float[Array, "C D"]]:
    """D text and Dᵀ image of one tile."""
    # XLA would fold the transposition into the product, which is then slower on a CPU by more than it costs alone.
    turned = lax.optimization_barrier(error.T)
    return error @ columns.vectors.astype(jnp.float32), turned @ rows.vectors.astype(jnp.float32)


# --- the device's share ---


def _grid(
    image: Array,
    text: Array,
    scale: Array,
    bias: Array,
    targets: Targets,
    axes: tuple[str, ...],
    chunk: int,
    row_sums: LogSum | None = None,
    column_sums: LogSum | None = None,
) -> tuple[Grid, Callable[[Array], Array]]:
    """The grid of a device's rows [B, …], and the way back from chunks [n, C, …] to them."""
    count = image.shape[0]
    chunks = -(-count // chunk)
    chunk = -(-count // chunks)
    missing = chunks * chunk - count

    def cut(x: Array) -> Array:
        return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, chunk, *x.shape[1:])

    def joined(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])[:count]

    def side(vectors: Array, weight: Array, sums: LogSum | None) -> Side:
        share = None if sums is None else jnp.where(weight > 0, 0.5 / sums.total, 0)
        peak = None if sums is None else sums.peak
        real = jnp.ones(count, bool) if missing else None
        return Side(*jax.tree.map(cut, (vectors, targets.ids, weight, real, peak, share)))

    matrix = targets.matrix
    if matrix is not None:
        matrix = jnp.pad(matrix.reshape(count, -1, count), [(0, missing), (0, 0), (0, missing)])
        matrix = matrix.reshape(chunks * chunk, -1)
    rows, columns = side(image, targets.row_weight, row_sums), side(text, targets.column_weight, column_sums)
    return Grid(rows, columns, matrix, scale, bias, axes), joined


def _batch_axes(rows: int) -> tuple[str, ...]:
    """The mesh axes that cut the batch; none inside somebody's `shard_map`, which has cut it already."""
    return () if AxisType.Manual in get_abstract_mesh().axis_types else free_axes("batch", rows)


def _by_rows(function: Callable[..., Any], axes: tuple[str, ...]) -> Callable[..., Any]:
    """`function` of each device's rows; what it takes and gives is cut by rows, a scalar is on every device."""
    if not axes:
        return function

    def on_mesh(*arrays: Any) -> Any:
        specs = jax.tree.map(lambda x: PartitionSpec(axes) if x.ndim else PartitionSpec(), arrays)
        # Nothing is differentiated through it, and whatever it gives differs between the devices.
        return jax.shard_map(function, in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)(*arrays)

    return on_mesh


def _gradients(image: Array, text: Array, scale: Array, of_image: Array, of_text: Array) -> tuple[Array, Array, Array]:
    """By image, text and scale, all in float32, from D text and Dᵀ image."""
    factor = scale / image.shape[0]
    return factor * of_image, factor * of_text, jnp.sum(image * of_image) / image.shape[0]


def _as(inputs: tuple[Array, ...], gradients: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    """Times the cotangent, in the types of the inputs."""
    return tuple((cotangent * each).astype(x.dtype) for x, each in zip(inputs, gradients, strict=True))


# --- softmax ---


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def softmax(image: Array, text: Array, scale: Array, targets: Targets, chunk: int) -> Float[Array, ""]:
    """Mean cross-entropy of rows and columns with targets; `targets` are constants."""
    return _softmax_forward(image, text, scale, targets, chunk)[0]


def _softmax_forward(image: Array, text: Array, scale: Array, targets: Targets, chunk: int) -> tuple[Array, Any]:
    axes = _batch_axes(image.shape[0])

    def local(image: Array, text: Array, scale: Array, targets: Targets) -> tuple[LogSum, LogSum, Array]:
        grid, joined = _grid(image, text, scale, jnp.zeros(()), targets, axes, chunk)
        zeros = jnp.zeros(grid.rows.weight.shape)
        empty = LogSum(zeros + LOWEST, zeros)
        (rows, own), columns = grid.sweep(_log_sums, (empty, zeros), empty)
        return jax.tree.map(joined, (rows, columns, own))

    rows, columns, own = _by_rows(local, axes)(image, text, scale, targets)

    def half(peak_or_log: Array, weight: Array) -> Array:
        return jnp.where(weight > 0, peak_or_log / 2, 0)

    # Peaks first: they cancel most of what they are compared with, and large logits leave the logarithms their digits.
    peaks = half(rows.peak, targets.row_weight) + half(columns.peak, targets.column_weight)
    logs = half(jnp.log(rows.total), targets.row_weight) + half(jnp.log(columns.total), targets.column_weight)
    return jnp.mean(peaks - own + logs), (image, text, scale, targets, rows, columns)


def _softmax_backward(chunk: int, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    image, text, scale, *_ = residuals
    axes = _batch_axes(image.shape[0])

    def local(
        image: Array, text: Array, scale: Array, targets: Targets, rows: LogSum, columns: LogSum
    ) -> tuple[Array, Array]:
        grid, joined = _grid(image, text, scale, jnp.zeros(()), targets, axes, chunk, rows, columns)
        zeros = jnp.zeros(grid.rows.vectors.shape)
        of_image, of_text = grid.sweep(_softmax_gradient, zeros, zeros)
        return joined(of_image), joined(of_text)

    of_image, of_text = _by_rows(local, axes)(*residuals)
    return *_as((image, text, scale), _gradients(image, text, scale, of_image, of_text), cotangent), None


softmax.defvjp(_softmax_forward, _softmax_backward)


# --- sigmoid ---


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sigmoid(image: Array, text: Array, scale: Array, bias: Array, targets: Targets, chunk: int) -> Float[Array, ""]:
    """Sum of the binary cross-entropies of all pairs, over B; `targets` are constants."""
    axes = _batch_axes(image.shape[0])

    def local(image: Array, text: Array, scale: Array, bias: Array, targets: Targets) -> Array:
        grid, joined = _grid(image, text, scale, bias, targets, axes, chunk)
        return joined(grid.sweep(_sigmoid_value, jnp.zeros(grid.rows.weight.shape), ())[0])

    return jnp.mean(_by_rows(local, axes)(image, text, scale, bias, targets))


def _sigmoid_forward(
    image: Array, text: Array, scale: Array, bias: Array, targets: Targets, chunk: int
) -> tuple[Array, Any]:
    """D needs nothing but its own tile: the gradients are found on the way, and are all that is kept."""
    axes = _batch_axes(image.shape[0])

    def local(image: Array, text: Array, scale: Array, bias: Array, targets: Targets) -> tuple[Array, ...]:
        grid, joined = _grid(image, text, scale, bias, targets, axes, chunk)
        each, vectors = jnp.zeros(grid.rows.weight.shape), jnp.zeros(grid.rows.vectors.shape)
        of_rows, of_text = grid.sweep(_sigmoid_gradient, (each, each, vectors), vectors)
        return *map(joined, of_rows), joined(of_text)

    losses, errors, of_image, of_text = _by_rows(local, axes)(image, text, scale, bias, targets)
    gradients = (*_gradients(image, text, scale, of_image, of_text), jnp.mean(errors))
    return jnp.mean(losses), _as((image, text, scale, bias), gradients, jnp.ones(()))


def _sigmoid_backward(chunk: int, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    return *_as(residuals, residuals, cotangent), None


sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)
