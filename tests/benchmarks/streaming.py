"""Host memory while a large checkpoint goes onto a mesh and out again: LLaMA-7B's shapes cut to 6 layers.

On 8 emulated devices, whose arrays lie in the host's memory as well: they are counted and taken off, as is what the
process held before.
"""

import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.report import Row

GIB = 1 << 30
SHARD = 10**9
PEAK = "VmHWM:"
NOW = "VmRSS:"


def streaming() -> list[Row]:
    """Import onto 8 devices, export, and the comparison of the files."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        _child("make", source)
        figures = _child("convert", source, target)
        names = sorted(path.name for path in source.iterdir())
        equal = [name for name in names if filecmp.cmp(source / name, target / name, shallow=False)]
        largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
    bound = 1.3 * largest + GIB
    count = sum(name.endswith(".safetensors") for name in names)
    rows = [
        Row(
            f"{what}: host memory beyond the arrays on the devices",
            figures[what] / GIB,
            "GiB",
            f"≤ {bound / GIB:.2f}",
            figures[what] <= bound,
        )
        for what in ("import", "export")
    ]
    about = f"of {count} shards, the largest {largest / GIB:.2f} GiB"
    return [
        *rows,
        Row("arrays on the 8 devices (float32)", figures["arrays"] / GIB, "GiB", "", True),
        Row("largest share of one device", figures["share"], "of the arrays", "≤ 0.13", figures["share"] <= 0.13),
        Row("seconds to import, float32 from bfloat16", figures["import_s"], "s", "", True),
        Row("seconds to export", figures["export_s"], "s", "", True),
        Row(f"files equal bit for bit, {about}", len(equal), f"of {len(names)}", f"= {len(names)}", equal == names),
    ]


def _child(what: str, *paths: Path) -> dict[str, float]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.benchmarks.streaming", what, *map(str, paths)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def make(folder: Path) -> None:
    """A checkpoint as transformers writes it: random bfloat16 weights in shards, and their index."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.data_pipelines.tokenizer_folders import make_folder

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=6)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    make_folder("llama", folder)
    model.save_pretrained(folder, max_shard_size=SHARD)


def convert(source: Path, target: Path) -> None:
    """Loads onto the devices and saves; prints the figures."""
    import jax

    import jmm
    from jmm.experiment import MeshShape
    from jmm.interop import convert as _  # noqa: F401  what is imported is not what is measured

    jax.devices()
    before, start = memory(NOW), time.perf_counter()
    reset()
    model = jmm.load(source, mesh=MeshShape(data=1, fsdp=8))
    jax.block_until_ready(model.variables)
    leaves = jax.tree.leaves(model.variables)
    arrays = sum(leaf.nbytes for leaf in leaves)
    figures = {"import": memory(PEAK) - before - arrays, "arrays": arrays, "import_s": time.perf_counter() - start}
    figures["share"] = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / arrays
    reset()
    start = time.perf_counter()
    jmm.save(model, target, shard_bytes=SHARD)
    figures |= {"export": memory(PEAK) - before - arrays, "export_s": time.perf_counter() - start}
    print(json.dumps(figures))


def memory(field: str) -> int:
    """Bytes of this process: now, or the most since `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    {"make": make, "convert": convert}[sys.argv[1]](*map(Path, sys.argv[2:]))
