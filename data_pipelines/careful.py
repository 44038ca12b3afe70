"""How training goes on without records that cannot be used."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd, sqrt

from data_pipelines.broken import Broken
from data_pipelines.protocol import Example, Source
from jmm.errors import UserError

TRIES = 16
"""Records that are tried in the place of a broken one, itself among them."""

ENOUGH = 100
"""Records that are read before their share is judged."""


@dataclass
class Skipped:
    """What was left out so far. Threads may add to it."""

    share: float = 0.01
    """Of all records that are asked for, so many may be broken, from 0 to 1; with more training ends: with three
    standard deviations more, as among few there are more by chance."""
    read: int = 0
    """Records that were asked for; those that stand in for broken ones do not count."""
    broken: dict[tuple[str, int], Broken] = field(default_factory=dict)
    """By the name of their dataset and their place in it."""
    _times: int = 0
    _listed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def good(self) -> None:
        """One more was asked for."""
        with self._lock:
            self.read += 1

    def add(self, name: str, place: int, error: Broken, asked: bool = True) -> None:
        """One is broken that was asked for, or that should stand in for such a one.

        Raises:
          UserError: those are too many.
        """
        # A copy: the error itself keeps the record, in the places that it passed.
        self.put(int(asked), int(asked), {(name, place): Broken(error.reason, str(error))})

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
            expected = self.share * self.read
            if broken and self.read >= ENOUGH and self._times > expected + 3 * sqrt(expected):
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
    """A source that gives a good example in the place of a broken one: always the same one, so that the order of
    training still depends on the seed alone."""

    source: Source
    name: str
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        count = len(self)
        for number in range(min(TRIES, count)):
            place = (index + number * _step(count)) % count
            try:
                example = self.source[place]
            except Broken as error:
                self.skipped.add(self.name, place, error, asked=not number)
                last = error
            else:
                if not number:
                    self.skipped.good()
                return example
        raise UserError(
            f"record {index} of {self.name} is broken, and so are the {min(TRIES, count) - 1} that could stand in for "
            f"it; the last: {last}"
        )


@lru_cache
def _step(count: int) -> int:
    """From a record to the one that stands in for it: far away, as broken ones lie together, and on a way that comes to
    each record once."""
    step = max(round(count * (sqrt(5) - 1) / 2), 1)
    while gcd(step, count) != 1:
        step += 1
    return step
