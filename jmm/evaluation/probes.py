"""What each layer of a stack knows of the label: linear probes (Alain & Bengio 2016; Chen et al. 2020, section 2.5)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.pipeline import held_out, training_arrays
from data_pipelines.preprocess import Arrays
from data_pipelines.protocol import Dataset
from jmm.distributed.sharding import on_mesh
from jmm.errors import UserError
from jmm.evaluation import pictures
from jmm.model import Model
from jmm.parts.transformer import Block
from jmm.protocol import inputs_of


@dataclass(frozen=True)
class LayerProbes:
    """How many held-out labels a logistic regression on each layer's features finds, the mean over the tokens of what
    the layer gives; it is fitted on the training examples as they are, and the model does not move."""

    stack: str = "decoder"
    """Name of the stack in the module."""
    decay: float = 1.0
    """Of the regression's weights, on features of unit variance."""

    def run(self, model: Model, data: Dataset) -> dict[str, float]:
        """probe/accuracy@1 … of the layers from the first; probe/best, and probe/best_layer."""
        scores = self._scores(model, data)
        best = int(np.argmax(scores))
        figures = {f"probe/accuracy@{layer}": score for layer, score in enumerate(scores, 1)}
        return figures | {"probe/best": scores[best], "probe/best_layer": float(best + 1)}

    def draw(self, model: Model, data: Dataset, folder: Path) -> list[Path]:
        """Accuracy by layer."""
        path = folder / "probe.png"
        points = list(enumerate(self._scores(model, data), 1))
        pictures.curves(path, {"accuracy": {"": points}}, "linear probe of every layer", of="layer")
        return [path]

    def _scores(self, model: Model, data: Dataset) -> list[float]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train, test = training_arrays(data), held_out(data)[1]
        if "label" not in test:
            raise UserError(f"a probe needs examples with a label; {type(data).__name__} has none")
        scores = []
        for seen, asked in zip(self.features(model, train), self.features(model, test), strict=True):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / self.decay, max_iter=1000))
            scores.append(float(probe.fit(seen, train["label"]).score(asked, test["label"])))
        return scores

    def features(self, model: Model, batch: Arrays) -> list[np.ndarray]:
        """Of each layer [B, D].

        Raises:
          UserError: the module has no such stack.
        """
        inputs, whole = inputs_of(model.module, batch), model.unstacked

        @jax.jit
        def forward(variables: Any, inputs: Any) -> list[jax.Array]:
            apply: Any = model.module.apply
            kept = apply(
                variables,
                **inputs,
                capture_intermediates=lambda module, method: isinstance(module, Block) and method == "__call__",
                mutable=["intermediates"],
            )[1]
            blocks = kept.get("intermediates", {}).get(self.stack, {}).get("blocks", {})
            return [blocks[layer]["__call__"][0].mean(axis=1) for layer in sorted(blocks, key=int)]

        parts = []
        with on_mesh(model.mesh):
            for start in range(0, len(next(iter(inputs.values()))), model.batch_size):
                part = {name: each[start : start + model.batch_size] for name, each in inputs.items()}
                count = len(next(iter(part.values())))
                parts.append([np.asarray(each)[:count] for each in forward(whole, model.place(part))])
        if not parts[0]:
            raise UserError(f"{type(model.module).__name__} has no stack of layers that is called {self.stack!r}")
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]
