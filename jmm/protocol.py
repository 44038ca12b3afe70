"""The small protocol between a system and the common loop.

A system is a frozen config that builds its module, says what a batch holds and gives its loss. Nothing in
`jmm/training` knows more about a model than this file says.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jax.typing import DTypeLike

Batch = Mapping[str, jax.Array]
"""A flat dict: image, text, text_mask, label … (the names and shapes are the same for every system)."""

Outputs = dict[str, jax.Array]
"""A flat dict: image_embedding, text_embedding, image_features, text_features, logits …"""

Variables = Mapping[str, Any]
"""Linen collections: `params`; whatever else the module declares, of which `buffers` never move; and `average` (the
moving average of the parameters) where the experiment keeps one, so that a loss can use it as a teacher."""


class Loss(NamedTuple):
    """What a loss returns."""

    value: jax.Array
    """The scalar to minimise."""
    metrics: dict[str, jax.Array]
    """Scalars to report."""
    updates: Variables
    """New values of mutable collections."""
    rows: jax.Array | None = None
    """The loss of each row [B], where it is one of single rows, to be reported for each task of a mixture."""


@runtime_checkable
class ModelConfig(Protocol):
    """A frozen dataclass that describes one system completely."""

    def build(self, dtype: DTypeLike) -> nn.Module:
        """The Linen module; parameters are float32, `dtype` is the type it computes in."""
        ...

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and types of the arrays that `init` and `loss` read."""
        ...

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """The training loss of one batch; a pure function of its arguments."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A module that writes tokens, besides what its call does. `jmm.generation` applies both methods with the
    collection `cache` mutable: `prefill` fills it, and every `step` adds a token to it. What a step changes are leaves
    named `key` and `value` alone, those of `jmm.parts.attention`; every other leaf [B, …] is of the row as it was read.
    """

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a row that the cache can hold; None: there is no such limit."""
        ...

    @property
    def continues(self) -> bool:
        """Whether what is written continues the text of the batch; if not, the text is read and another written."""
        ...

    def prefill(self, **fields: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Given fields of a batch, the logits [B, V] of the first token to be written, and how many tokens [B] of each
        row the cache then holds."""
        ...

    def step(self, token: jax.Array, position: jax.Array) -> jax.Array:
        """Given a token [B] and its position among the tokens of the cache [B], the logits [B, V] of the next."""
        ...


def inputs_of(module: nn.Module, batch: Mapping[str, Any], method: str = "__call__") -> dict[str, Any]:
    """The fields of a batch that a method of the module names (a label is for the loss alone)."""
    named = inspect.signature(getattr(type(module), method)).parameters
    return {name: value for name, value in batch.items() if name in named}


def forward(
    module: nn.Module,
    variables: Variables,
    batch: Mapping[str, Any],
    *,
    train: bool = False,
    rngs: dict[str, jax.Array] | None = None,
) -> Outputs:
    """The outputs of a system for those fields of a batch that it reads."""
    call: Any = module.apply
    return call(variables, **inputs_of(module, batch), train=train, rngs=rngs)


def training_forward(
    module: nn.Module, variables: Variables, batch: Mapping[str, Any], rngs: dict[str, jax.Array]
) -> tuple[Outputs, Variables]:
    """The outputs in training, and the new values of what the module itself moves (running statistics); the latter
    are a loss's `updates`."""
    moving = [name for name in variables if name not in ("params", "buffers", "average")]
    apply: Any = module.apply
    return apply(variables, **inputs_of(module, batch), train=True, rngs=rngs, mutable=moving)
