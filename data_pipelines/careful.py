"""How training goes on without records that cannot be used."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from data_pipelines.broken import Broken
from data_pipelines.protocol import Example, Source
from jmm.errors import UserError

TRIES = 16
"""Neighbours that are tried in the place of a broken record."""

ENOUGH = 100
"""Records that are read before their share is judged."""


@dataclass
class Skipped:
    """What was left out so far. Threads may add to it."""

    share: float = 0.01
    """Of all records that were read, so many may be broken, from 0 to 1; with more training ends."""
    read: int = 0
    """Records that were read."""
    broken: dict[tuple[str, int], Broken] = field(default_factory=dict)
    """By the name of their dataset and their place in it."""
    _times: int = 0
    _listed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def good(self) -> None:
        """One more was read."""
        with self._lock:
            self.read += 1

    def add(self, name: str, place: int, error: Broken) -> None:
        """One more was read, and is broken.

        Raises:
          UserError: those are too many.
        """
        self.put(1, 1, {(name, place): error})

    def put(self, read: int, times: int, broken: dict[tuple[str, int], Broken]) -> None:
        """So many more were read, so many times a broken one: these.

        Raises:
          UserError: those are too many.
        """
        with self._lock:
            self.read += read
            self._times += times
            for where, error in broken.items():
                self.broken.setdefault(where, error)
            if broken and self.read >= ENOUGH and self._times > self.share * self.read:
                (name, place), error = next(reversed(broken.items()))
                raise UserError(
                    f"{self._times} of {self.read} records of {name} are broken, more than the share of {self.share:g} "
                    f"that broken_share allows; the last is record {place}: {error}"
                )

    def take(self) -> tuple[int, int, dict[tuple[str, int], Broken]]:
        """What came since the last call, for another's `put`; here it is forgotten."""
        with self._lock:
            taken = self.read, self._times, self.broken
            self.read, self._times, self.broken = 0, 0, {}
            return taken

    def unlisted(self) -> list[dict[str, str | int]]:
        """The broken records that no earlier call gave."""
        with self._lock:
            new = list(self.broken.items())[self._listed :]
            self._listed = len(self.broken)
        return [
            {"dataset": name, "record": place, "reason": error.reason, "message": str(error)}
            for (name, place), error in new
        ]

    @property
    def counts(self) -> dict[str, int]:
        """Different broken records by reason."""
        with self._lock:
            return dict(Counter(error.reason for error in self.broken.values()))


@dataclass(frozen=True)
class Careful:
    """A source that gives the next good example in the place of a broken one: always the same one, so that the order of
    training still depends on the seed alone."""

    source: Source
    name: str
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        for place in range(index, index + min(TRIES, len(self))):
            try:
                example = self.source[place % len(self)]
            except Broken as error:
                self.skipped.add(self.name, place % len(self), error)
                last = error
            else:
                self.skipped.good()
                return example
        raise UserError(f"{TRIES} records of {self.name} from record {index} on are broken; the last: {last}")
