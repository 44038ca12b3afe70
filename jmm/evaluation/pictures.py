"""Pictures of results, for the `report/` of a run."""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jmm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (
    *("#2a6fbb", "#e08a1e", "#4c9f70", "#8a5fbf", "#d1495b"),
    *("#37b2b5", "#8c6239", "#e58fc4", "#9a9a1f", "#6b7280"),
)
INK, PALE, RULE = "#222222", "#767676", "#d9d9d9"
RIGHT, WRONG = "#2e7d4f", "#c0392b"

SIDE, MARGIN = 128, 4
"""Pixels that a small picture of a sheet is enlarged to, and those between two."""

Curve = Sequence[tuple[int, float]]
"""(step, value) pairs."""


def new_figure(width: float, height: float) -> "Figure":
    """A figure without a window (matplotlib is imported only when something is drawn)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], title: str, of: str = "step") -> None:
    """One panel for each figure over steps, or what else they are `of`; a panel may hold several curves, each with a
    label."""
    figure = new_figure(4.6 * min(len(panels), 3), 3.4 * -(-len(panels) // 3) + 0.3)
    figure.suptitle(title, color=INK, fontsize=13, parse_math=False)
    for axes, (name, lines) in zip(_panels(figure, len(panels)), panels.items(), strict=True):
        for color, (label, points) in zip(COLORS * len(lines), lines.items(), strict=False):
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            last = f"{label} {values[-1]:.3g}".strip()
            axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=4, label=last)
        title = name.replace("_", " ").replace("/", ": ")
        axes.set_title(title, fontsize=11, color=INK, pad=8 + 14 * -(-len(lines) // 3))
        axes.set_xlabel(of, color=INK)
        # Above the axes, where no curve can run through it.
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98))
        axes.margins(y=0.15)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(color=RULE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def similarity(path: Path, cosine: np.ndarray, captions: Sequence[str], images: Sequence[np.ndarray]) -> None:
    """The cosine similarity of captions [T] and images [N] as a matrix [T, N], the images along its top."""
    rows, columns = cosine.shape
    figure = new_figure(0.42 * columns + 4.2, 0.42 * rows + 1.9)
    top, axes = figure.subplots(2, 1, height_ratios=[1, rows], sharex=True)
    heat = axes.imshow(cosine, cmap="Blues", aspect="auto")
    for column, image in enumerate(images):
        inset = top.inset_axes((column - 0.45, 0, 0.9, 1), transform=top.transData)
        _show(inset, image)
    top.set_ylim(0, 1)
    top.axis("off")
    axes.set_yticks(range(rows), captions, fontsize=9, parse_math=False)
    axes.set_xticks([])
    best = cosine.argmax(axis=0)
    axes.scatter(range(columns), best, marker="o", s=22, facecolor="none", edgecolor="#d1495b", linewidth=1.4)
    axes.set_xlabel("held-out images (circle: the closest caption)", color=INK)
    figure.colorbar(heat, ax=[top, axes], label="cosine similarity", fraction=0.03, pad=0.02)
    _save(figure, path)


def nearest(path: Path, queries: Sequence[str], images: Sequence[Sequence[np.ndarray]], cosine: np.ndarray) -> None:
    """One row a query: its nearest images, best first, with their cosine similarities."""
    columns = max(map(len, images))
    figure = new_figure(1.15 * columns + 2.6, 1.4 * len(queries))
    grid = figure.subplots(len(queries), columns + 1, width_ratios=[2.2] + [1] * columns, squeeze=False)
    for row, query, found, scores in zip(grid, queries, images, cosine, strict=True):
        words = "\n".join(textwrap.wrap(f"“{query}”", 24))
        place = {"va": "center", "ha": "left", "transform": row[0].transAxes}
        row[0].text(0, 0.5, words, fontsize=10, color=INK, parse_math=False, **place)
        for axes in row:
            axes.axis("off")
        for axes, image, score in zip(row[1:], found, scores, strict=False):
            _show(axes, image)
            axes.set_title(f"{score:.2f}", fontsize=9, color=INK, pad=3)
    _save(figure, path)


def texts(path: Path, images: Sequence[np.ndarray | None], notes: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Pictures with what was written about each beside it: texts, each in its colour."""
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(4.2 * columns, 1.7 * rows)
    grid = figure.subplots(rows, 2 * columns, width_ratios=[1.5, 2.7] * columns, squeeze=False).reshape(-1, 2)
    for axes in grid.ravel():
        axes.axis("off")
    for (left, right), image, lines in zip(grid, images, notes, strict=False):
        if image is not None:
            _show(left, image)
            left.set_anchor("NW")
        place = 1.0
        for text, color in lines:
            wrapped = _wrapped(text, 36, 4)
            right.text(0, place, "\n".join(wrapped), fontsize=9, color=color, va="top", parse_math=False)
            place -= 0.105 * len(wrapped) + 0.05
    _save(figure, path)


def rows(path: Path, images: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Rows of pictures, each with its name on the left."""
    columns = max(map(len, images.values()))
    figure = new_figure(1.1 * columns + 1.5, 1.15 * len(images))
    grid = figure.subplots(len(images), columns + 1, width_ratios=[1.3] + [1] * columns, squeeze=False)
    for row, (name, found) in zip(grid, images.items(), strict=True):
        place = {"va": "center", "ha": "left", "transform": row[0].transAxes}
        row[0].text(0, 0.5, "\n".join(_wrapped(name, 14, 4)), fontsize=10, color=INK, parse_math=False, **place)
        for axes in row:
            axes.axis("off")
        for axes, image in zip(row[1:], found, strict=False):
            _show(axes, image)
    _save(figure, path)


def sheet(path: Path, images: Sequence[np.ndarray], columns: int | None = None) -> None:
    """Pictures of one size as one PNG, side by side in so many columns, or about as many as rows, enlarged by a whole
    factor so that their pixels can be seen.

    Raises:
      UserError: the file cannot be written.
    """
    from PIL import Image

    height, width, _ = images[0].shape
    factor, columns = max(1, SIDE // min(height, width)), columns or math.ceil(math.sqrt(len(images)))
    height, width = height * factor + MARGIN, width * factor + MARGIN
    whole = np.full((-(-len(images) // columns) * height + MARGIN, columns * width + MARGIN, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = MARGIN + i // columns * height, MARGIN + i % columns * width
        large = image.repeat(factor, 0).repeat(factor, 1)
        whole[top : top + height - MARGIN, left : left + width - MARGIN] = large
    try:
        Image.fromarray(whole).save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def looks(
    path: Path, images: Sequence[np.ndarray], words: Sequence[Sequence[tuple[str, np.ndarray]]], columns: int = 8
) -> None:
    """Pictures, each followed by the words of a text; for each word the picture is as bright as the weights [h, w] of
    its places are, which are scaled to the greatest of the word."""
    tiles: list[tuple[str, np.ndarray | None, np.ndarray | None]] = []
    for image, maps in zip(images, words, strict=True):
        own = [("", image, None), *((word, image, weights) for word, weights in maps)]
        tiles += own + [("", None, None)] * (-len(own) % columns)
    rows = len(tiles) // columns
    figure = new_figure(1.35 * columns, 1.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (word, tile, weights) in zip(grid, tiles, strict=True):
        axes.axis("off")
        if tile is not None:
            _show(axes, tile)
            axes.set_title(_wrapped(word, 16, 1)[0], fontsize=10, color=INK, pad=3, parse_math=False)
        if weights is not None:
            _darken(axes, weights / (weights.max() or 1))
    _save(figure, path)


def confusion(path: Path, counts: np.ndarray, labels: Sequence[str]) -> None:
    """How many examples of each class (rows) were taken for each class (columns)."""
    figure = new_figure(0.5 * len(labels) + 2, 0.5 * len(labels) + 1.6)
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 2
        color = "white" if dark else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xlabel("found", color=INK)
    axes.set_ylabel("true", color=INK)
    _save(figure, path)


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    """At most so many lines; at least one."""
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …") or [""]


def _show(axes: "Axes", image: np.ndarray) -> None:
    grey = image.shape[2] == 1
    axes.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def _darken(axes: "Axes", light: np.ndarray) -> None:
    """Covers the picture in `axes` with shadow where `light` [h, w], from 0 to 1, is low."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    shadow = np.zeros((*light.shape, 4))
    shadow[..., 3] = 0.85 * (1 - light)
    axes.imshow(shadow, extent=(left, right, bottom, top), interpolation="bilinear")


def _panels(figure: "Figure", count: int) -> list[Any]:
    columns = min(count, 3)
    grid = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.axis("off")
    return list(grid[:count])


def _save(figure: "Figure", path: Path) -> None:
    with warnings.catch_warnings():
        # A caption may be in a script that the font lacks; boxes in its place are all there is to say.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=140)
