"""Pictures found by gradient: of codes whose picture a CLIP finds like a text (VQGAN-CLIP, Crowson et al. 2022).

codes ─► tokenizer ─► picture ─► cut-outs, each a little changed ─► CLIP ─► distance from the text
  └──────────────────────────────── gradient ◄────────────────────────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from data_pipelines.preprocess import Arrays
from jmm.distributed.sharding import on_mesh
from jmm.errors import UserError
from jmm.generation.images import as_bytes
from jmm.model import Model
from jmm.parts.quantizers import nearest, straight_through
from jmm.protocol import forward, inputs_of


@dataclass(frozen=True)
class Pursuit:
    """How pictures are found."""

    steps: int = 200
    """Of Adam."""
    learning_rate: float = 0.1
    """In units of the deviation of the tokenizer's codes."""
    cutouts: int = 16
    """Squares of each picture that the CLIP sees at a step, anywhere in it."""
    smallest: float = 0.85
    """Side of the smallest cut-out as a share of the picture's; the largest is whole. A CLIP that knows only whole
    scenes is told by smaller ones to fill the rest of the picture with more of the same."""
    noise: float = 0.4
    """Deviation of the noise in a cut-out: evenly drawn up to this, of pixels from -1 to 1. What persuades a CLIP by
    single pixels does not survive it."""
    shown: int = 8
    """How often the pictures are kept on the way, the last included."""


class Found(NamedTuple):
    """Pictures on the way to a text."""

    steps: tuple[int, ...]
    """How many steps had been taken."""
    images: UInt8[np.ndarray, "S N H W C"]
    """What they looked like then."""
    similarity: Float[np.ndarray, "S N"]
    """The cosine of the whole pictures' embeddings and the text's."""


def pursue(
    tokenizer: Model, clip: Model, prompt: str, *, count: int = 1, manner: Pursuit = Pursuit(), seed: int = 0
) -> Found:
    """Pictures that a CLIP finds ever more like a text, from random codes on.

    Args:
      tokenizer: a VQ-VAE, VQGAN or MoVQ.
      clip: compares pictures with texts.
      prompt: the text.
      count: of pictures, each from codes of its own.
      manner: how they are found.
      seed: of the first codes and the cut-outs.

    Raises:
      UserError: the tokenizer has no vectors of codes; the other model compares no pictures with texts, has
        another vocabulary than its tokenizer, or sees other colours; no steps.
    """
    module: Any = tokenizer.module
    if not hasattr(module, "look_up"):
        raise UserError(f"{type(module).__name__} has no codes that a gradient moves; a VQGAN has")
    read = read_texts(clip, [prompt])
    if min(manner.steps, manner.shown, manner.cutouts) < 1:
        raise UserError("a pursuit needs at least one step, one cut-out and one picture shown")
    if not 0 < manner.smallest <= 1:
        what = "the smallest cut-out is a share of the picture's side, above 0 and up to 1"
        raise UserError(f"{what}, not {manner.smallest}")
    config: Any = tokenizer.config
    if clip.preprocess.channels != tokenizer.preprocess.channels:
        raise UserError(f"the CLIP sees {clip.preprocess.channels} channels of colour, not {config.channels}")

    @jax.jit
    def look(variables: tuple[Any, Any], vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = _picture(module, variables[0], codes, vectors)
        return image, _embedded(clip, variables[1], image) @ wanted

    @jax.jit
    def step(variables: tuple[Any, Any], vectors: jax.Array, moments: Any, key: PRNGKeyArray) -> tuple[jax.Array, Any]:
        def loss(vectors: jax.Array) -> jax.Array:
            image = _picture(module, variables[0], codes, vectors)
            seen = _embedded(clip, variables[1], _cut(image, clip.preprocess.image_size, manner, key))
            # Half of the squared angle between the two, which, unlike a cosine, is steep where they are far apart.
            return 2 * jnp.square(jnp.arcsin(jnp.linalg.norm(seen - wanted, axis=-1) / 2)).sum() / manner.cutouts

        updates, moments = adam.update(jax.grad(loss)(vectors), moments)
        return optax.apply_updates(vectors, updates), moments

    images, similarity, done = [], [], 0
    with on_mesh(tokenizer.mesh):
        wanted = jnp.asarray(clip(**read)["text_embedding"][0])
        ids, key = jnp.arange(config.num_codes)[None, None], jax.random.key(seed)
        codes = module.apply(tokenizer.variables, ids, method="look_up")[0, 0]
        vectors = codes[jax.random.randint(key, (count, *config.grid), 0, len(codes))]
        adam = optax.adam(manner.learning_rate * float(codes.std()))
        moments, variables = adam.init(vectors), (tokenizer.variables, clip.variables)
        marks = sorted({-(-manner.steps * part // manner.shown) for part in range(1, manner.shown + 1)})
        for mark in marks:
            for number in range(done, mark):
                vectors, moments = step(variables, vectors, moments, jax.random.fold_in(key, number))
            done = mark
            image, cosine = look(variables, vectors)
            images.append(as_bytes(np.asarray(image)))
            similarity.append(np.asarray(cosine))
    return Found(tuple(marks), np.stack(images), np.stack(similarity))


def read_texts(clip: Model, texts: Sequence[str]) -> Arrays:
    """Texts as a CLIP reads them.

    Raises:
      UserError: it compares no images with texts; its tokenizer has words that it does not know.
    """
    if set(inputs_of(clip.module, {"image": 0, "text": 0})) != {"image", "text"}:
        raise UserError(f"{type(clip.module).__name__} does not compare images with texts; a CLIP does")
    rows = clip.preprocess(texts=texts)
    tables = flatten_dict(clip.variables["params"], sep="/").items()
    known = min(len(table) for path, table in tables if path.endswith("embedding/embedding"))
    if rows["text"].max() >= known:
        what = f"the tokenizer gives the id {rows['text'].max()}, and there are {known} words"
        raise UserError(f"the CLIP's tokenizer is of another vocabulary than the CLIP: {what}")
    return rows


def _picture(module: Any, variables: Any, codes: Float[Array, "K D"], vectors: Float[Array, "N h w D"]) -> jax.Array:
    """Of the codes nearest to the vectors, with pixels in their range; gradients pass both unchanged."""
    image = module.apply(variables, straight_through(vectors, codes[nearest(vectors, codes)]), method="decode_vectors")
    return straight_through(image, jnp.clip(image, -1, 1))


def _cut(
    image: Float[Array, "N H W C"], size: tuple[int, int], manner: Pursuit, key: PRNGKeyArray
) -> Float[Array, "cuts H2 W2 C"]:
    """Cut-outs of each picture, brought to one size, with noise."""
    sides, height, width = jnp.asarray(image.shape[1:3]), *size

    def one(image: jax.Array, key: PRNGKeyArray) -> jax.Array:
        share, place, amount, noise = jax.random.split(key, 4)
        side = jax.random.uniform(share, (), minval=manner.smallest) * sides.min()
        first = jax.random.uniform(place, (2,)) * (sides - side)
        scale = jnp.asarray([height, width]) / side
        cut = jax.image.scale_and_translate(
            image, (height, width, image.shape[-1]), (0, 1), scale, -first * scale, "linear"
        )
        return cut + manner.noise * jax.random.uniform(amount) * jax.random.normal(noise, cut.shape)

    keys = jax.random.split(key, (len(image), manner.cutouts))
    cuts = jax.vmap(lambda image, keys: jax.vmap(lambda key: one(image, key))(keys))(image, keys)
    return cuts.reshape(-1, *cuts.shape[2:])


def _embedded(clip: Model, variables: Any, image: Float[Array, "N H W C"]) -> Float[Array, "N D"]:
    """Of pixels from -1 to 1, as the CLIP's own preprocessing scales them."""
    preprocess, module = clip.preprocess, clip.module
    size = (len(image), *preprocess.image_size, image.shape[-1])
    image = image if image.shape == size else jax.image.resize(image, size, "linear")
    pixels = (image + 1) * 127.5 * preprocess.scale
    normal = (pixels - jnp.asarray(preprocess.mean)) / jnp.asarray(preprocess.std)
    return forward(module, variables, {"image": normal})["image_embedding"]
