"""Records that cannot be used."""

from typing import Literal

from jmm.errors import UserError

Reason = Literal["image", "pixels", "audio", "caption", "field", "record", "name"]
"""An image or a sound that cannot be read, and an image of too many pixels; an empty caption; a missing field; a record
that is cut off, or none; a name that leads out of its archive."""


class Broken(UserError):
    """One record that cannot be used."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason
