"""Images that a tokenizer makes anew of their codes, against what they were."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

import jmm
from data_pipelines.pipeline import held_out
from data_pipelines.preprocess import Arrays
from data_pipelines.protocol import Dataset
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.evaluation.frechet import distance
from jmm.generation.images import as_bytes
from jmm.model import Model
from jmm.protocol import forward

SHOWN = 10
"""How many images are drawn."""


@dataclass(frozen=True)
class Reconstruction:
    """Peak signal-to-noise ratio on the held-out examples, and which codes they use."""

    count: int | None = None
    """Of held-out examples, drawn once for all; None: all."""
    features: str = ""
    """The folder of a model in whose eyes images and what was made of them are compared (`jmm.evaluation.frechet`)."""
    name: str = "reconstruction"
    """What the figures are called."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """reconstruction/psnr in dB; reconstruction/usage, the share of all codes that some image has; and
        reconstruction/perplexity, the number of codes that as even a use would need; with the features of a model
        the Fréchet distance, reconstruction/frechet_clip_image_embedding."""
        found = self._outputs(model, data, self.count)
        config: Any = model.config
        uses = np.bincount(found["codes"].ravel(), minlength=config.num_codes)
        figures = {
            "psnr": float(psnr(found["image"], found["made"]).mean()),
            "usage": float((uses > 0).mean()),
            "perplexity": perplexity(uses),
        }
        if self.features:
            sets = (list(as_bytes(found[name])) for name in ("image", "made"))
            figures.update([distance(jmm.load(self.features), *sets)])
        return {f"{self.name}/{name}": value for name, value in figures.items()}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Some images, and below each what was made of its codes."""
        found = self._outputs(model, data, min(SHOWN, self.count or SHOWN))
        path = folder / f"{self.name}.png"
        made = {name: list(as_bytes(found[field])) for name, field in (("image", "image"), ("of its codes", "made"))}
        pictures.rows(path, made)
        return [path]

    def _outputs(self, model: Model, data: Dataset, count: int | None) -> Arrays:
        _, arrays = held_out(data, count)
        if "image" not in arrays:
            raise UserError(f"a reconstruction needs held-out examples with an image; {type(data).__name__} has none")
        inputs = {"image": arrays["image"]}
        given = jax.eval_shape(partial(forward, model.module), model.variables, inputs)
        if not {"codes", "image"} <= given.keys():
            raise UserError(f"{type(model.module).__name__} makes no images of codes; a tokenizer does")
        found = model.outputs(inputs, ["codes", "image"])
        return {"image": arrays["image"], "made": found["image"], "codes": found["codes"]}


def psnr(image: Float[np.ndarray, "B H W C"], made: Float[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B"]:
    """Of each image in [-1, 1], in dB: 10 log₁₀ of the squared range of pixels, 4, over their mean squared error.
    Pixels out of the range are brought to its ends."""
    errors = np.square(image.astype(np.float64) - np.clip(made, -1, 1)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(4 / errors)


def perplexity(uses: Int[np.ndarray, "K"]) -> float:
    """The exponential of the entropy of how often each code is used."""
    shares = uses[uses > 0] / uses.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
