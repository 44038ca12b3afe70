"""Forward passes on a CPU against PyTorch, one thread each: CLIP with ViT-B/32 and ViT-S/16, float32, batches of 8.

Both read the same folder as transformers writes it; PyTorch runs eagerly, with its fused attention. big_vision's ViT-S
reached 0.77 of PyTorch's speed on another machine: here PyTorch stands in for it.

python -m tests.benchmarks.forward --json figures.json
"""

import functools
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.report import Measurement, Row, run
from tests.benchmarks.turns import Make, Once, serve, take_turns

ROWS = 8
TURNS = 9
BIG_VISION = 0.77
"""Its speed with ViT-S/16, PyTorch's being 1."""


def make_folder(name: str, folder: Path) -> None:
    """A published folder with random weights."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

    if name == "clip_b32":
        model = CLIPModel(CLIPConfig())
    else:
        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
        model = ViTForImageClassification(ViTConfig(**sizes, num_labels=1000))
    model.save_pretrained(folder)


def inputs(name: str) -> dict[str, np.ndarray]:
    """The same for both."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((ROWS, 224, 224, 3)).astype(np.float32)}
    if name == "clip_b32":
        batch["text"] = rng.integers(1, 49_000, (ROWS, 77)).astype(np.int32)
        batch["text"][:, -1] = 49_407
        batch["text_mask"] = np.ones((ROWS, 77), bool)
    return batch


def with_jmm(case: str) -> Once:
    """`model(**batch)` of `jmm.load`."""
    import jax

    import jmm

    name, folder = case.split()
    model, batch = jmm.load(folder), inputs(name)
    return lambda: jax.block_until_ready(model(**batch))


def with_torch(case: str) -> Once:
    """The same folder in transformers."""
    import torch
    from transformers import AutoModelForImageClassification, CLIPModel

    torch.set_num_threads(1)
    name, folder = case.split()
    kind = CLIPModel if name == "clip_b32" else AutoModelForImageClassification
    model, batch = kind.from_pretrained(folder).eval(), inputs(name)
    given = {"pixel_values": torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()}
    if "text" in batch:
        given |= {"input_ids": torch.from_numpy(batch["text"]).long()}

    def once() -> None:
        with torch.no_grad():
            model(**given)

    return once


CONTESTANTS: dict[str, Make] = {"jmm": with_jmm, "torch": with_torch}


def speed(name: str, what: str, target: float, base: float = 1.0) -> list[Row]:
    """How many times as fast as PyTorch, or as what is `base` times as fast as PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(name, Path(folder))
        turns = take_turns("tests.benchmarks.forward", CONTESTANTS, f"{name} {folder}", TURNS)
    ours, theirs = (statistics.median(each) for each in zip(*turns, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in turns) / base
    times = f" ({ours * 1e3:,.0f} and PyTorch {theirs * 1e3:,.0f} ms)"
    return [Row(what + times, ratio, "times as fast", f"≥ {target}", ratio >= target)]


MEASUREMENTS: dict[str, Measurement] = {
    "clip": functools.partial(speed, "clip_b32", "forward of CLIP B/32, one core, against PyTorch", 1.05),
    "vit": functools.partial(speed, "vit_s16", "forward of ViT-S/16, one core, against big_vision", 1.3, BIG_VISION),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(CONTESTANTS[sys.argv[2]])
    else:
        sys.exit(run(MEASUREMENTS, __doc__ or ""))
