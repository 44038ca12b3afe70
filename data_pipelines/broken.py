"""Records that cannot be used."""

from typing import Literal

from jmm.errors import UserError

Reason = Literal["image", "pixels", "audio", "caption", "field", "record", "name", "shard"]
"""An image or a sound that cannot be read, and an image of too many pixels; an empty caption; a missing field; a record
that is cut off, or none; a name that leads out of its archive; a file of records that cannot be opened."""


class Unreadable(UserError):
    """A file of records that cannot be opened."""


class Broken(UserError):
    """One record that cannot be used."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["Broken"], tuple[Reason, str]]:
        """Workers send it to the process that they read for."""
        return Broken, (self.reason, str(self))
