"""Captioners on a CPU against PyTorch, one thread each, float32, batches of 8.

A CoCa with ViT-S/16 at 224 px, poolers of 64 queries and of one, and a decoder of 6 + 6 layers, 384 wide, over 64
tokens of 32,000, trained with remat="dots", which asks for half the memory. PyTorch has the same shapes made of its own
layers, runs eagerly and trains with its fused AdamW. Every contestant is a process of its own; they run in turn, and a
figure is the median over the turns of the ratio of their processor times. Compilation comes before.

python -m tests.benchmarks.captioners --json figures.json
"""

import functools
import statistics
import sys
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.report import Measurement, Row, run
from tests.benchmarks.turns import Make, Once, serve, take_turns

if TYPE_CHECKING:
    from jmm.models.coca import Config

ROWS, SIZE, PATCH, WIDTH, HEADS, MLP = 8, 224, 16, 384, 6, 1536
IMAGE_DEPTH, HALF_DEPTH, QUERIES, LENGTH, VOCABULARY = 12, 6, 64, 64, 32_000
TURNS = 7


def inputs() -> dict[str, np.ndarray]:
    """The same for both."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((ROWS, SIZE, SIZE, 3)).astype(np.float32),
        "text": rng.integers(1, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
        "text_mask": np.ones((ROWS, LENGTH), bool),
    }


# --- jmm ---


def coca_config() -> "Config":
    """The system."""
    from dataclasses import replace

    from jmm.models.coca import Config
    from jmm.models.vit import ImageTower
    from jmm.parts.transformer import TransformerConfig

    tower = TransformerConfig(WIDTH, IMAGE_DEPTH, HEADS, MLP, remat="dots")
    half = replace(tower, depth=HALF_DEPTH)
    return Config(
        ImageTower(tower, (SIZE, SIZE), PATCH, pool="none"),
        half,
        replace(half, cross_attention=True),
        VOCABULARY,
        LENGTH,
        WIDTH,
        num_queries=QUERIES,
        pool_heads=HEADS,
    )


def forward_with_jmm() -> Once:
    """`model(**batch)`."""
    import jax

    from data_pipelines.preprocess import Preprocess
    from jmm.distributed.mesh import MeshShape, make_mesh
    from jmm.model import Model

    config, batch = coca_config(), inputs()
    module = config.build()
    variables = jax.jit(functools.partial(module.init, **batch))(jax.random.key(0))
    model = Model(config, module, variables, Preprocess(), make_mesh(MeshShape()))
    return lambda: jax.block_until_ready(model(**batch))


def train_with_jmm() -> Once:
    """The step of an experiment."""
    import jax

    from data_pipelines.digits import Digits
    from jmm.distributed.sharding import on_mesh
    from jmm.experiment import Experiment, Optimizer
    from jmm.training.step import build

    optimizer = Optimizer(learning_rate=1e-4, schedule="constant", weight_decay=0.01, clip_norm=None)
    program = build(Experiment("captioner", coca_config(), Digits(), 1000, ROWS, optimizer=optimizer))
    state, batch = program.init(), program.place(inputs())

    def once() -> None:
        nonlocal state
        with on_mesh(program.mesh):
            state, metrics = program.step(state, batch)
        jax.block_until_ready((state, metrics))

    return once


# --- PyTorch ---


def torch_coca():
    """The same of PyTorch's own layers; called with images and texts, it gives both embeddings, their scale, and the
    logits."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    kwargs = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}

    def encoder(depth, norm):
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, MLP, **kwargs)
        return nn.TransformerEncoder(layer, depth, nn.LayerNorm(WIDTH) if norm else None, enable_nested_tensor=False)

    class Pooler(nn.Module):
        def __init__(self, queries):
            super().__init__()
            self.queries = nn.Parameter(torch.randn(1, queries, WIDTH))
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x):
            x, queries = self.norms[0](x), self.norms[1](self.queries).expand(len(x), -1, -1)
            return self.norms[2](self.attention(queries, x, x, need_weights=False)[0])

    class CoCa(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.image_positions = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
            self.image = encoder(IMAGE_DEPTH, norm=True)
            self.pool, self.contrastive_pool = Pooler(QUERIES), Pooler(1)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
            self.positions = nn.Parameter(0.02 * torch.randn(1, LENGTH + 1, WIDTH))
            self.unimodal = encoder(HALF_DEPTH, norm=False)
            self.text_norm = nn.LayerNorm(WIDTH)
            layer = nn.TransformerDecoderLayer(WIDTH, HEADS, MLP, **kwargs)
            self.multimodal = nn.TransformerDecoder(layer, HALF_DEPTH, nn.LayerNorm(WIDTH))
            self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.log_scale = nn.Parameter(torch.tensor(2.66))
            causal = nn.Transformer.generate_square_subsequent_mask(LENGTH + 1)
            self.register_buffer("causal", causal, persistent=False)

        def forward(self, image, text):
            x = self.patches(image).flatten(2).transpose(1, 2) + self.image_positions
            tokens = self.pool(self.image(x))
            pooled = self.contrastive_pool(tokens)[:, 0]
            token = self.class_token.expand(len(text), -1, -1)
            x = torch.cat([self.embedding(text), token], 1) + self.positions
            x = self.unimodal(x, mask=self.causal, is_causal=True)
            end, features = self.text_norm(x[:, -1]), x[:, :-1]
            causal = self.causal[:LENGTH, :LENGTH]
            logits = self.head(self.multimodal(features, tokens, tgt_mask=causal, tgt_is_causal=True))
            pair = [F.normalize(each(x), dim=-1) for each, x in zip(self.projections, (pooled, end), strict=True)]
            return (*pair, self.log_scale.exp(), logits)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return CoCa()


def torch_inputs():
    """Images and texts."""
    import torch

    batch = inputs()
    return torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(batch["text"]).long()


def forward_with_torch() -> Once:
    """Without gradients."""
    import torch

    model, batch = torch_coca().eval(), torch_inputs()

    def once() -> None:
        with torch.no_grad():
            model(*batch)

    return once


def train_with_torch() -> Once:
    """Both losses, their gradients, and the fused AdamW."""
    import torch
    from torch.nn import functional as F

    model, (image, text) = torch_coca().train(), torch_inputs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    rows = torch.arange(ROWS)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        images, texts, scale, logits = model(image, text)
        cosine = scale * images @ texts.T
        contrastive = (F.cross_entropy(cosine, rows) + F.cross_entropy(cosine.T, rows)) / 2
        captioning = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        (contrastive + 2 * captioning).backward()
        optimizer.step()

    return once


MAKERS = {
    "jmm": {"forward": forward_with_jmm, "train": train_with_jmm},
    "torch": {"forward": forward_with_torch, "train": train_with_torch},
}
CONTESTANTS: dict[str, Make] = {name: lambda case, makers=makers: makers[case]() for name, makers in MAKERS.items()}


def speed(case: str, what: str, target: float) -> list[Row]:
    """How many times as fast as PyTorch."""
    turns = take_turns("tests.benchmarks.captioners", CONTESTANTS, case, TURNS)
    ours, theirs = (statistics.median(each) for each in zip(*turns, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in turns)
    times = f" ({ours * 1e3:,.0f} and PyTorch {theirs * 1e3:,.0f} ms)"
    return [Row(what + times, ratio, "times as fast", f"≥ {target}", ratio >= target)]


MEASUREMENTS: dict[str, Measurement] = {
    "coca_forward": functools.partial(speed, "forward", "forward of a CoCa, one core, against PyTorch", 1.0),
    "coca_train": functools.partial(speed, "train", "train step of a CoCa, one core, against PyTorch", 0.85),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(CONTESTANTS[sys.argv[2]])
    else:
        sys.exit(run(MEASUREMENTS, __doc__ or ""))
