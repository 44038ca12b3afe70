"""SigLIP B/16 as big_vision writes it, from Flax' own layers: what the compiler makes of its step.

    python -m tests.benchmarks.two_towers ANSWER.json

As in big_vision's ViT, text transformer and two-tower model: blocks of LayerNorm, MultiHeadDotProductAttention and two
Dense, scanned and computed again in the backward pass, each activation constrained to the batch; every parameter of
more than 4 MiB cut along its largest dimension over all devices; the loss over all pairs at once. Its text tower is
given bfloat16 like its images, which big_vision leaves in float32.
"""

import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

from jmm.planning.compiler import ENVIRONMENT

TOPOLOGY, BATCH, STEPS = "v5e:16x16", 32_768, 274_658
LARGE = 4 << 20
"""Bytes of a parameter above which it is cut."""


def facts() -> dict[str, Any]:
    """The compiled step and its state, as `jmm.planning.plan.Plan` reads them."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.experimental import mesh_utils, topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from jmm.planning.chips import slice_of
    from jmm.planning.compiler import kept

    half = jnp.bfloat16

    def held(x: jax.Array) -> jax.Array:
        return nn.with_logical_constraint(x, ("act_batch", "act_len", "act_emb"))

    class Mlp(nn.Module):
        dtype: Any = half

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            width = x.shape[-1]
            x = nn.gelu(held(nn.Dense(4 * width, dtype=self.dtype)(x)))
            return nn.Dense(width, dtype=self.dtype)(x)

    class Block(nn.Module):
        heads: int

        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            x = held(x)
            y = nn.LayerNorm()(x)
            x = x + held(nn.MultiHeadDotProductAttention(self.heads, dtype=half)(y, y))
            return held(x + held(Mlp()(nn.LayerNorm()(x)))), None

    class Encoder(nn.Module):
        depth: int
        heads: int

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            again = nn.remat(Block, prevent_cse=False, policy=jax.checkpoint_policies.nothing_saveable)
            layers = nn.scan(again, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            return nn.LayerNorm()(layers(self.heads, name="block")(x, None)[0])

    class Pool(nn.Module):
        heads: int

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
            x = nn.MultiHeadDotProductAttention(self.heads)(jnp.tile(probe, (len(x), 1, 1)), x)
            return (x + Mlp(jnp.float32)(nn.LayerNorm()(x)))[:, 0]

    class Towers(nn.Module):
        @nn.compact
        def __call__(self, image: jax.Array, text: jax.Array) -> tuple[jax.Array, ...]:
            x = nn.Conv(768, (16, 16), (16, 16), padding="VALID", dtype=half)(image.astype(half)).reshape(-1, 196, 768)
            x = x + self.param("image_positions", nn.initializers.normal(0.02), (1, 196, 768)).astype(x.dtype)
            seen = Pool(12, name="pool")(Encoder(12, 12, name="image")(x))
            y = nn.Embed(32_000, 768, dtype=half)(text)
            y = y + self.param("text_positions", nn.initializers.normal(0.02), (1, 64, 768)).astype(y.dtype)
            read = nn.Dense(768)(Encoder(12, 12, name="text")(y)[:, -1])
            scale = self.param("scale", nn.initializers.constant(2.3), (1,))
            bias = self.param("bias", nn.initializers.constant(-10.0), (1,))
            one, other = (z / (jnp.linalg.norm(z, axis=1, keepdims=True) + 1e-8) for z in (seen, read))
            return one, other, jnp.exp(scale), bias

    asked = slice_of(TOPOLOGY)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=asked.topology).devices
    mesh = Mesh(mesh_utils.create_device_mesh((len(devices),), devices=devices), ("data",), axis_types=(AxisType.Auto,))
    module = Towers()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 274_658), b2=0.95, weight_decay=1e-4),
    )
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32),
        "text": jax.ShapeDtypeStruct((BATCH, 64), jnp.int32),
    }

    def start() -> Any:
        params = module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 64), jnp.int32))["params"]
        return params, tx.init(params)

    def cut(leaf: Any) -> NamedSharding:
        spec = [None] * leaf.ndim
        if leaf.size * leaf.dtype.itemsize > LARGE:
            for axis in np.argsort(leaf.shape)[::-1]:
                if leaf.shape[axis] % len(devices) == 0:
                    return NamedSharding(mesh, PartitionSpec(*spec[:axis], "data", *spec[axis + 1 :]))
        return NamedSharding(mesh, PartitionSpec(*spec))

    def step(state: Any, batch: Any) -> Any:
        params, moments = state

        def loss(params: Any) -> jax.Array:
            one, other, scale, bias = module.apply({"params": params}, **batch)
            logits = jnp.dot(one, other.T) * scale + bias
            signs = 2 * jnp.eye(BATCH) - jnp.ones_like(logits)
            return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = tx.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), {"loss": value, "norm": optax.tree.norm(gradient)}

    state = jax.eval_shape(start)
    placed, rows = jax.tree.map(cut, state), NamedSharding(mesh, PartitionSpec("data"))
    run = jax.jit(
        step,
        in_shardings=(placed, rows),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules([("act_batch", "data")]):
        lowered = run.lower(state, batch)
    return {
        "experiment": "two_towers",
        "topology": TOPOLOGY,
        "slices": 1,
        "mesh": {"data": len(devices)},
        "batch_size": BATCH,
        "steps": STEPS,
        "precision": "bfloat16",
        "parameters": sum(prod(leaf.shape) for leaf in jax.tree.leaves(state[0])),
        "model_flops": 0.0,
        "state_bytes": {},
        "evaluation": None,
        **kept(lowered, {"data": len(devices)}, asked),
    }


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    Path(sys.argv[1]).write_text(json.dumps(facts()))
