"""Pictures drawn code by code with a stream model, on prompts and on the beginnings of other pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from jmm.distributed.sharding import on_mesh, replicated
from jmm.errors import UserError
from jmm.generation.generate import generate, writer
from jmm.model import Model
from jmm.protocol import inputs_of


@dataclass(frozen=True)
class Manner:
    """How codes are drawn."""

    temperature: float = 1.0
    """What the logits are divided by; 0 takes the most probable code always."""
    top_k: int | None = None
    """Draw from this many most probable codes alone."""
    top_p: float | None = None
    """Draw from the fewest most probable codes that hold this probability together."""
    guidance: float = 1.0
    """How far to go from what is drawn without the prompt towards what is drawn with it, and beyond (Ho & Salimans
    2022): 1 draws with the prompt alone."""


def draw_images(
    model: Model,
    tokenizer: Model | None,
    prompts: Sequence[str] | None,
    *,
    count: int | None = None,
    beginning: UInt8[np.ndarray, "h w c"] | None = None,
    rows: int | None = None,
    manner: Manner = Manner(),
    seed: int = 0,
) -> UInt8[np.ndarray, "N H W C"]:
    """One picture for each prompt, or as many as are asked for of a model that reads no text.

    >>> draw_images(model, tokenizer, ["a large red circle above a small blue square"] * 16, seed=1)

    Args:
      model: one that writes codes: a DALL-E, an Image GPT.
      tokenizer: makes pictures of its codes, and codes of `beginning`; None: the model does so itself.
      prompts: texts; None for a model that reads none.
      count: of pictures, where there are no prompts.
      beginning: a picture of any size that all of them continue.
      rows: how many rows of its codes are kept; None: half of them.
      manner: how codes are drawn.
      seed: batch n draws with `seed` + n.

    Raises:
      UserError: the model draws no pictures; the tokenizer has other codes than the model, or is missing; a prompt is
        missing, unwanted, or longer than the model's texts; rows that the picture does not have.
    """
    height, width = _grid(model)
    first = _first_code(model)
    painter = _painter(model, tokenizer)
    texts = _texts(model, prompts, count)
    rows = (height // 2 if rows is None else rows) if beginning is not None else 0
    if beginning is not None and not 0 < rows < height:
        raise UserError(f"of an image prompt 1 to {height - 1} rows of codes can be kept, not {rows}")
    if manner.guidance != 1 and "text" not in texts:
        raise UserError("guidance is away from what is drawn without a prompt: there is none")
    total = len(next(iter(texts.values()))) if texts else int(count or 0)
    kept = np.zeros((rows, width), np.int32) if beginning is None else encode(painter, [beginning])[0, :rows]
    given = {**texts, "codes": np.broadcast_to(kept.reshape(-1), (total, kept.size))}
    size, drawn = min(model.batch_size, total), []
    for number, start in enumerate(range(0, total, size)):
        # Of the last batch the last row again, so that one shape is compiled.
        places = np.minimum(np.arange(start, start + size), total - 1)
        batch = {name: each[places] for name, each in given.items()}
        if manner.guidance != 1:
            batch = {name: np.concatenate([each, each]) for name, each in batch.items()}
            batch["text_mask"][size:] = False
        written = generate(
            model,
            batch,
            max_new_tokens=(height - rows) * width,
            temperature=manner.temperature,
            top_k=manner.top_k,
            top_p=manner.top_p,
            guidance=manner.guidance,
            seed=seed + number,
        )
        new = np.asarray(written.ids)[:size] - first
        drawn.append(np.concatenate([batch["codes"][:size], new], axis=1)[: total - start])
    return paint(painter, np.concatenate(drawn).reshape(total, height, width))


def encode(tokenizer: Model, images: Sequence[UInt8[np.ndarray, "_h _w _c"]]) -> Int[np.ndarray, "N rows columns"]:
    """The codes of pictures of any sizes."""
    batch, parts = tokenizer.preprocess(images=images)["image"], []
    run, size = _method(tokenizer.module, "encode", tokenizer.mesh), min(tokenizer.batch_size, len(images))
    for start in range(0, len(images), size):
        places = np.minimum(np.arange(start, start + size), len(images) - 1)  # one shape: the last picture again
        with on_mesh(tokenizer.mesh):
            codes = run(tokenizer.variables, tokenizer.place({"image": batch[places]})["image"])
        parts.append(np.asarray(codes)[: min(size, len(images) - start)])
    return np.concatenate(parts)


def paint(tokenizer: Model, codes: Int[np.ndarray, "N h w"]) -> UInt8[np.ndarray, "N H W C"]:
    """The pictures of codes.

    Raises:
      UserError: codes that the tokenizer does not have.
    """
    config: Any = tokenizer.config
    if codes.size and not 0 <= codes.min() <= codes.max() < config.num_codes:
        wrong = codes.max() if codes.max() >= config.num_codes else codes.min()
        raise UserError(f"the tokenizer has codes from 0 to {config.num_codes - 1}, none of id {wrong}")
    painted, size = [], min(tokenizer.batch_size, len(codes))
    run = _method(tokenizer.module, "decode", tokenizer.mesh)
    for start in range(0, len(codes), size):
        places = np.minimum(np.arange(start, start + size), len(codes) - 1)
        with on_mesh(tokenizer.mesh):
            images = np.asarray(run(tokenizer.variables, codes[places]))[: len(codes) - start]
        painted.append(as_bytes(images))
    return np.concatenate(painted)


def as_bytes(images: Float[np.ndarray, "*B H W C"]) -> UInt8[np.ndarray, "*B H W C"]:
    """Pixels from [-1, 1] to 0–255."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


@lru_cache(maxsize=32)
def _method(module: nn.Module, name: str, mesh: Mesh) -> Any:
    return jax.jit(partial(module.apply, method=name), out_shardings=replicated(mesh))


def _grid(model: Model) -> tuple[int, int]:
    grid: tuple[int, int] | None = getattr(model.config, "grid", None)
    if grid is None or "codes" not in inputs_of(writer(model), {"codes": 0}, "prefill"):
        raise UserError(f"{type(model.module).__name__} draws no pictures; a DALL-E or an Image GPT does")
    return grid


def _first_code(model: Model) -> int:
    """The id of the first code in the model's vocabulary: text comes before."""
    return getattr(model.config, "text_vocab", 0)


def _painter(model: Model, tokenizer: Model | None) -> Model:
    """What makes pictures of the model's codes."""
    found, config = tokenizer or model, model.config
    theirs, ours = getattr(found.config, "num_codes", None), getattr(config, "image_vocab", None)
    if not all(hasattr(found.module, name) for name in ("encode", "decode")):
        said = "the tokenizer whose codes it was trained on is missing" if tokenizer is None else "this is no tokenizer"
        raise UserError(f"{said}: {type(found.module).__name__} makes no pictures of codes")
    if ours is not None and theirs != ours:
        raise UserError(f"the tokenizer has {theirs} codes, and the model was trained on {ours}")
    grid: Any = getattr(found.config, "grid", None)
    if grid != _grid(model):
        raise UserError(f"the tokenizer makes {grid[0]}×{grid[1]} codes of a picture, the model {_grid(model)}")
    return found


def _texts(model: Model, prompts: Sequence[str] | None, count: int | None) -> dict[str, np.ndarray]:
    reads, name = "text" in inputs_of(model.module, {"text": 0}, "prefill"), type(model.module).__name__
    if reads != (prompts is not None):
        raise UserError(f"{name} draws what a prompt says; give one" if reads else f"{name} reads no prompt")
    if prompts is None:
        if not count or count < 1:
            raise UserError(f"there must be at least one picture to draw, not {count}")
        return {}
    preprocess = model.preprocess
    for prompt in prompts:
        length = len(preprocess.tokenizer.encode(prompt, 1 << 16))
        if length > preprocess.text_length:
            raise UserError(f"the prompt has {length} tokens; {name} reads {preprocess.text_length}: {prompt!r}")
    return preprocess(texts=prompts)
