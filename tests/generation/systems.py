"""Small systems that write, with random weights."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jmm.distributed.mesh import MeshShape, make_mesh
from jmm.distributed.sharding import tree_shardings
from jmm.model import Model
from jmm.models import decoder, encoder_decoder
from jmm.parts.transformer import TransformerConfig

VOCABULARY = 259
STACK = TransformerConfig(width=16, depth=2, num_heads=2, mlp_dim=32)
SWIGLU = replace(STACK, activation="silu", gated=True, norm="rms", use_bias=False, rotary_base=100.0, num_kv_heads=1)
T5 = replace(STACK, activation="relu", norm="rms", use_bias=False, attention_scale=1.0)
BART = encoder_decoder.Config(STACK, replace(STACK, cross_attention=True), VOCABULARY, 16)
SYSTEMS = {
    "gpt2": decoder.Config(STACK, VOCABULARY, 16),
    "opt-350m": decoder.Config(replace(STACK, norm_order="post"), VOCABULARY, 16, first_position=2, embed_dim=6),
    "llama": decoder.Config(SWIGLU, VOCABULARY, 16, first_position=None, tied_head=False),
    "bart": BART,
    "marian": replace(BART, first_position=None, sinusoidal=True, scaled_embedding=True, embedding_norm=False),
    "t5": replace(
        BART,
        encoder=T5,
        decoder=replace(T5, cross_attention=True),
        first_position=None,
        relative_buckets=6,
        relative_distance=5,
        embedding_norm=False,
    ),
}


@cache
def variables_of(name):
    """Weights large enough for rows to say different things; layers stacked."""
    config, text = SYSTEMS[name], jnp.zeros((1, 1), jnp.int32)
    more = {"target": text} if isinstance(config, encoder_decoder.Config) else {}
    abstract = jax.eval_shape(lambda: config.build().init(jax.random.key(0), text=text, **more))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), abstract)


def model_of(name, preprocess, shape=None):
    """On a mesh of eight devices; None: on one."""
    mesh = make_mesh(shape) if shape else make_mesh(MeshShape(), jax.devices()[:1])
    variables = variables_of(name)
    shardings = {kind: tree_shardings(tree, mesh) for kind, tree in variables.items()}
    config = SYSTEMS[name]
    return Model(config, config.build(), jax.device_put(variables, shardings), preprocess, mesh)
