"""Several datasets or tasks as one, each with its share of the examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from data_pipelines.packed import Packed
from data_pipelines.preprocess import Preprocess
from data_pipelines.protocol import Dataset, Example, Source, Split
from jmm.errors import UserError


@dataclass(frozen=True)
class Part:
    """One dataset or task of a mixture."""

    name: str
    """What its loss and its evaluations are called."""
    dataset: Dataset
    """Where its examples come from."""
    weight: float = 1.0
    """Its share of the training examples, relative to the others, before the temperature of the mixture; the number of
    its examples, or a limit if that is less, mixes by size (Raffel et al. 2020, section 3.5.2)."""


@dataclass(frozen=True)
class Later:
    """Other shares from some example on, as where tasks build on others."""

    start: int
    """The global index of the first example that is drawn with them: the step times the batch size."""
    weights: tuple[float, ...]
    """One for each part, in their order."""


@dataclass(frozen=True)
class Mixture:
    """Training examples of every part in proportion to its weight, in an order that the seed decides; each part is
    repeated as often as it takes. `task` tells the parts of a batch apart."""

    parts: tuple[Part, ...]
    """What is mixed; all have one preprocessing."""
    temperature: float = 1.0
    """Shares are in proportion to weight^(1/temperature): 1 keeps the weights, a higher one moves the shares towards
    equal ones, which they are at infinity (Raffel et al. 2020, section 3.5.2; Arivazhagan et al. 2019)."""
    later: Later | None = None
    """The shares after that; each part then begins a new epoch. None: they stay."""

    def __post_init__(self) -> None:
        """Raises UserError without parts, for equal names, for a weight that is not above 0, for parts that are packed,
        for a temperature below 1, and for later weights that are not one a part or begin before the second example."""
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"a mixture needs parts with different names, not {', '.join(names) or 'none'}")
        if packed := [part.name for part in self.parts if isinstance(part.dataset, Packed)]:
            raise UserError(f"{packed[0]} is packed on its own; pack the mixture, and its parts share their rows")
        if not self.temperature >= 1:
            raise UserError(f"the temperature of a mixture must be at least 1, not {self.temperature}")
        later = self.later.weights if self.later else ()
        if self.later and (len(later) != len(names) or self.later.start < 1):
            raise UserError(
                f"later shares are {len(names)} weights, one a part, from example 1 or a later one on, "
                f"not {len(later)} from {self.later.start} on"
            )
        weights = [*(part.weight for part in self.parts), *later]
        for name, weight in zip([*names, *(names if later else ())], weights, strict=True):
            if not 0 < weight < float("inf"):
                raise UserError(f"the weight of {name} must be above 0, not {weight}")

    @property
    def weights(self) -> list[float]:
        """The share of each part; together 1."""
        return self.shares([part.weight for part in self.parts])

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The shares of parts with these weights, at the temperature; together 1."""
        heated = [weight ** (1 / self.temperature) for weight in weights]
        return [weight / sum(heated) for weight in heated]

    def part(self, name: str) -> Dataset:
        """The dataset of a part.

        Raises:
          UserError: there is no such part.
        """
        for part in self.parts:
            if part.name == name:
                return part.dataset
        raise UserError(f"the mixture has no part {name!r}; it has {', '.join(part.name for part in self.parts)}")

    def sources(self, split: Split) -> list["TaskSource"]:
        """The examples of each part, which know their task."""
        return [TaskSource(part.dataset.source(split), task) for task, part in enumerate(self.parts)]

    def source(self, split: Split) -> Source:
        """The examples of all parts, one part after another."""
        return Joined(self.sources(split))

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """As its part does."""
        return self.parts[example["task"]].dataset.augment(example, rng)

    def preprocessor(self) -> Preprocess:
        """That of all parts.

        Raises:
          UserError: parts that differ in it.
        """
        first, *others = (part.dataset.preprocessor() for part in self.parts)
        for part, other in zip(self.parts[1:], others, strict=True):
            if other != first:
                raise UserError(f"{part.name} and {self.parts[0].name} differ in their preprocessing; a batch has one")
        return first


@dataclass(frozen=True)
class TaskSource:
    """The examples of one part of a mixture."""

    source: Source
    task: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return {**self.source[index], "task": self.task}


class Joined:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]):
        self._sources, self._ends = sources, list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number][index - (self._ends[number - 1] if number else 0)]


def task_names(dataset: Dataset) -> tuple[str, ...]:
    """The names of a mixture's parts, in the order that `task` counts; none for another dataset."""
    return tuple(part.name for part in dataset.parts) if isinstance(dataset, Mixture) else ()


def part_of(dataset: Dataset, name: str) -> Dataset:
    """A part of a mixture, packed or not; any dataset itself for an empty name.

    Raises:
      UserError: the dataset has no such part.
    """
    if not name:
        return dataset
    dataset = dataset.dataset if isinstance(dataset, Packed) else dataset
    if not isinstance(dataset, Mixture):
        raise UserError(f"{type(dataset).__name__} is no mixture, and has no part {name!r}")
    return dataset.part(name)
