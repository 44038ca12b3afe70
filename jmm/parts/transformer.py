"""The transformer block and the stack of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.kernels.core import SAVED_NAMES
from jmm.kernels.masks import Mask
from jmm.parts.attention import MultiHeadAttention
from jmm.parts.feed_forward import Activation, FeedForward
from jmm.parts.norms import NormKind, make_norm
from jmm.protocol import Variables

Remat = Literal["none", "dots", "full"]

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES),
    ),
}


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of identical blocks."""

    width: int
    """Width D of the residual stream."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Query heads."""
    mlp_dim: int
    """Hidden width of the feed-forward."""
    num_kv_heads: int | None = None
    """Key and value heads; fewer than `num_heads` for grouped-query attention. None: as many."""
    head_dim: int | None = None
    """Width of a head; None: that of the residual stream, shared among `num_heads`."""
    activation: Activation = "gelu"
    """Of the feed-forward; `gelu` is exact, `gelu_tanh` its tanh approximation."""
    gated: bool = False
    """Gated feed-forward; with `silu` this is SwiGLU."""
    norm: NormKind = "layer"
    """LayerNorm, RMSNorm, or RMSNorm by one more than its scale (Gemma)."""
    norm_order: Literal["pre", "post", "sandwich"] = "pre"
    """Norm before each sub-layer and once at the end (pre), after each residual sum (post), or as with pre, and another
    on what each sub-layer gives (sandwich; Ding et al. 2021, CogView, section 2.4)."""
    norm_eps: float = 1e-6
    """Added to the variance."""
    use_bias: bool = True
    """Biases in projections."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; None: as `use_bias` says."""
    out_bias: bool | None = None
    """Bias of the projection that joins the heads; None: as `use_bias` says."""
    rotary_base: float | None = None
    """Base of the rotary position frequencies; None for none."""
    attention_scale: float | None = None
    """Of the logits of attention; None: 1/√(width of a head)."""
    cross_attention: bool = False
    """A cross-attention sub-layer over `context` between self-attention and feed-forward."""
    cross_layer: bool = False
    """Cross-attention in a layer of its own behind each: over the `context`, which it normalises, and with a second
    feed-forward (open_clip's CoCa)."""
    dropout: float = 0.0
    """Rate at which each sub-layer's output is dropped in training."""
    scan: bool = True
    """Run the stack as one scanned block (compile time does not grow with depth) or unrolled: on a CPU a training
    step of three layers is 13–31% faster so, and one of twelve takes up to twice as long, as the sums of the backward
    pass are fused over all layers. The parameters are the same either way."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, all but matrix products and attention, or the whole block."""


C = TypeVar("C")


def with_remat(config: C, remat: Remat) -> C:
    """The configuration of a system with `remat` in every stack of it."""
    changed: Any = config
    if type(changed) is tuple:
        changed = tuple(with_remat(each, remat) for each in changed)
    elif is_dataclass(config) and not isinstance(config, type):
        fields = {name: with_remat(getattr(config, name), remat) for name in config.__dataclass_fields__}
        changed = replace(config, **(fields | ({"remat": remat} if isinstance(config, TransformerConfig) else {})))
    return cast(C, changed)


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward, each around a residual.

    x ─► norm ─► attention ─► + ─► norm ─► cross-attention ─► + ─► norm ─► feed-forward ─► +      (pre-norm)

    With `cross_layer` a feed-forward follows on either attention.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        mask: Mask | None = None,
        bias: Float[Array, "#B #H L S"] | None = None,
        context: Float[Array, "B M E"] | None = None,
        context_mask: Mask | None = None,
        positions: Int[Array, "#B L"] | None = None,
        cached: bool = False,
        train: bool = False,
    ) -> Float[Array, "B L D"]:
        """`cached` is that of `MultiHeadAttention`, for both attentions."""
        cfg = self.config
        if cfg.cross_attention and cfg.cross_layer:
            raise ValueError("a block has cross_attention or a cross_layer, not both")
        if (cfg.cross_attention or cfg.cross_layer) != (context is not None):
            raise ValueError("a block with cross_attention needs a context, and one without takes none")
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))

        def attend(base: float | None, name: str) -> MultiHeadAttention:
            qkv_bias, out_bias = (cfg.use_bias if own is None else own for own in (cfg.qkv_bias, cfg.out_bias))
            return MultiHeadAttention(
                cfg.num_heads,
                cfg.num_kv_heads,
                cfg.head_dim,
                qkv_bias,
                out_bias,
                base,
                self.dtype,
                cfg.attention_scale,
                name=name,
            )

        attention = attend(cfg.rotary_base, "attention")
        x = self._residual(
            x,
            lambda h: attention(h, mask=mask, bias=bias, positions=positions, cached=cached),
            "attention_norm",
            train,
        )
        if cfg.cross_layer:
            x = self._feed_forward(x, "mlp", train)
            context = make_norm(cfg.norm, cfg.norm_eps, self.dtype, "context_norm")(context)
        if context is not None:
            cross = attend(None, "cross_attention")
            x = self._residual(
                x, lambda h: cross(h, context, mask=context_mask, cached=cached), "cross_attention_norm", train
            )
        return self._feed_forward(x, "cross_mlp" if cfg.cross_layer else "mlp", train)

    def _feed_forward(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        cfg = self.config
        mlp = FeedForward(cfg.mlp_dim, cfg.activation, cfg.gated, cfg.use_bias, self.dtype, name=name)
        return self._residual(x, mlp, f"{name}_norm", train)

    def _residual(
        self, x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], norm_name: str, train: bool
    ) -> jax.Array:
        cfg = self.config
        norm = make_norm(cfg.norm, cfg.norm_eps, self.dtype, norm_name)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        if cfg.norm_order == "post":
            return norm(x + drop(sublayer(x)))
        given = sublayer(norm(x))
        if cfg.norm_order == "sandwich":
            given = make_norm(cfg.norm, cfg.norm_eps, self.dtype, f"{norm_name}_after")(given)
        return x + drop(given)


FIRST = "0"
"""The first layer's name where layers lie one by one."""


class Layers(nn.Module):
    """The blocks of a stack whose parameters lie one by one (`unstack`), in turn."""

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], *, mask: Mask | None, layer_masks: Mask | None, **inputs: Any
    ) -> Float[Array, "B L D"]:
        for layer in range(self.config.depth):
            own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], layer_masks)
            x = Block(self.config, self.dtype, name=str(layer))(x, mask=_both(mask, own), **inputs)
        return x


class Transformer(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading axis, and the final norm unless norms come post or
    `final_norm` says that another takes the residual stream as it is.

    Applied to parameters that `unstack` has laid out one by one, it takes no slices of the stack: on a CPU a forward
    pass is some per cent faster so, and writing token by token twice as fast.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    final_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        mask: Mask | None = None,
        layer_masks: Mask | None = None,
        train: bool = False,
        **inputs: Any,
    ) -> Float[Array, "B L D"]:
        """`inputs` are those of `Block` (bias, context, context_mask, positions, cached). Each layer sees what `mask`
        and its own part of `layer_masks` allow, a formula whose labels have a leading axis of layers."""
        cfg = self.config
        if self.has_variable("params", "blocks") and FIRST in self.get_variable("params", "blocks"):
            x = Layers(cfg, self.dtype, name="blocks")(x, mask=mask, layer_masks=layer_masks, train=train, **inputs)
        else:
            x = self._scanned(x, mask, layer_masks, {"train": train, **inputs})
        if self.final_norm and cfg.norm_order != "post":
            x = make_norm(cfg.norm, cfg.norm_eps, self.dtype, "norm")(x)
        return x

    def slots(self) -> int | None:
        """How many tokens the cache of self-attention has room for; None: it is empty."""
        if not self.has_variable("cache", "blocks"):
            return None
        blocks: Any = self.get_variable("cache", "blocks")
        count: int = blocks.get(FIRST, blocks)["attention"]["key"].shape[-2]
        return count

    def _scanned(self, x: jax.Array, mask: Mask | None, layer_masks: Mask | None, inputs: dict[str, Any]) -> jax.Array:
        cfg = self.config

        def layer(block: Block, x: jax.Array, own: Mask | None) -> tuple[jax.Array, None]:
            return block(x, mask=_both(mask, own), **inputs), None

        if cfg.remat != "none":
            layer = nn.remat(layer, policy=REMAT_POLICIES[cfg.remat], prevent_cse=not cfg.scan)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True, "dropout": True},
            length=cfg.depth,
            unroll=1 if cfg.scan else cfg.depth,
        )
        x, _ = stack(Block(cfg, self.dtype, name="blocks"), x, layer_masks)
        return x


def _both(mask: Mask | None, own: Mask | None) -> Mask | None:
    return mask & own if mask and own else mask or own


def unstack(variables: Variables) -> Variables:
    """The same variables with the layers of every stack one by one: `blocks/mlp/…` [depth, …] becomes `blocks/0/mlp/…`,
    `blocks/1/mlp/…` and so on. Layers that lie so already are left alone."""

    def apart(name: str, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if name != "blocks" or FIRST in tree:
            return {key: apart(key, each) for key, each in tree.items()}
        depth = len(jax.tree.leaves(tree)[0])
        return {str(layer): jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree) for layer in range(depth)}

    return {name: apart(name, tree) for name, tree in variables.items()}
