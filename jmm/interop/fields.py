"""The fields of a config.json: read by name, refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.settings import sides
from jmm.errors import UserError
from jmm.parts.feed_forward import Activation

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of activations, and ours."""

ACTIVATION_NAMES: dict[str, str] = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
"""Our names of activations, and theirs."""


@dataclass(frozen=True)
class Fields:
    """What a config.json holds. A field that is missing or null has its default: files of older versions lack what
    was added since. Every method raises UserError, naming the field, for a value that it does not take."""

    values: Mapping[str, Any]
    """The parsed file."""
    file: str = "config.json"
    """Its name."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands."""
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number; without a default the field must be there."""
        value = self.get(name, default)
        if value is None:
            raise UserError(f"{self.file} lacks {name}, a positive whole number")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} in {self.file} is {value!r}; it must be a positive whole number")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{name} in {self.file} is {value!r}; it must be a positive number")
        return float(value)

    def sides(self, name: str, default: int) -> tuple[int, int]:
        """Height and width: two positive whole numbers, or one for both."""
        return sides(self.get(name, default), f"{name} in {self.file}")

    def side(self, name: str, default: int) -> int:
        """The side of a square: a positive whole number, or two that are equal."""
        height, width = self.sides(name, default)
        if height != width:
            raise UserError(f"{name} in {self.file} is {self.get(name)!r}, which is not supported; a square is")
        return height

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{name} in {self.file} is {value!r}; it must be true or false")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """An activation, by our name."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UserError(f"{name} in {self.file} is {value!r}, which is not supported; {', '.join(ACTIVATIONS)} are")
        return ACTIVATIONS[value]

    def only(self, name: str, supported: Any) -> None:
        """Refuses everything but one value, which is also the default."""
        value = self.get(name, supported)
        if value != supported:
            raise UserError(f"{name} in {self.file} is {value!r}, which is not supported; {supported!r} is")

    def divides(self, part: str, parts: int, whole: str, size: int) -> None:
        """Refuses a number of parts into which a size cannot be cut."""
        if size % parts:
            raise UserError(f"{part} in {self.file} is {parts}, which does not divide {whole} {size}")
