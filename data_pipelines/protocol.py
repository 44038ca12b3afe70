"""What the common loop asks of a dataset."""

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from data_pipelines.preprocess import Preprocess

Split = Literal["train", "held_out"]

Example = dict[str, Any]
"""One raw example, of these what there is: `image` uint8 [h, w, C] of any size; `caption`, a string; `label`, an int;
`prompt` and `answer`, strings: what a model is asked and what it should write; `answers`, all that are right; `kind`,
of the question; `task`, an int: its part of a mixture; `codes` [h, w] of a picture that is no longer there."""


@runtime_checkable
class Source(Protocol):
    """Random access to raw examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Checker(Protocol):
    """A dataset that can tell without a model whether a picture shows what a caption says."""

    def see(self, image: np.ndarray) -> Any:
        """What is found in a picture, uint8 [h, w, C]."""
        ...

    def true_of(self, caption: str, seen: Any) -> bool:
        """Whether a caption is true of what was found in a picture."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """A frozen dataclass that describes a dataset completely."""

    def source(self, split: Split) -> Source:
        """The examples of a split, in a fixed order."""
        ...

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """A training example, its image as the source gives it, with its random changes; `rng` is the example's own."""
        ...

    def preprocessor(self) -> Preprocess:
        """How examples, and a user's own pictures and texts, become arrays."""
        ...
