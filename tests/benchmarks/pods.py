"""The figures of pods: plans by the TPU compiler, a step as big_vision writes it, host memory of checkpoints.

python -m tests.benchmarks.pods --json figures.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from jmm.planning.plan import Plan
from tests.benchmarks.report import Row, run
from tests.benchmarks.streaming import NOW, PEAK, memory, reset

GIB = 1 << 30
ROOT = Path(__file__).parents[2]
STATE = 2 * GIB
CPU = {**os.environ, "JAX_PLATFORMS": "cpu"}
SAVED = 1.3
"""Host memory that saving and restoring may take, in sizes of the state."""


@cache
def plan(name: str, topology: str) -> tuple[dict[str, Any], float, int]:
    """What `jmm plan` prints of an experiment, the seconds it took, and the most memory of one of its processes."""
    command = [sys.executable, "-m", "jmm", "plan", f"experiments/{name}.py", "--topology", topology, "--json"]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "out").open("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": folder}, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        return json.loads(out.read()), seconds, usage.ru_maxrss * 1024


def clip() -> list[Row]:
    """CLIP B/16 at a batch of 32,768 on v5e:16x16."""
    found, seconds, most = plan("clip_b16", "v5e:16x16")
    share, sent = found["memory_needed"] / found["memory_there"], sum(found["sent"].values()) / 1e9
    return [
        Row("plan of CLIP B/16", seconds / 60, "minutes", "≤ 10", seconds <= 600),
        Row("host memory of its compiler", most / GIB, "GiB", "≤ 4", most <= 4 * GIB),
        Row("planned memory a chip", share, "of the chip's", "≤ 0.8", share <= 0.8),
        Row("sent a step by a chip", sent, "GB", "≤ 1.5", sent <= 1.5),
        Row(f"model FLOPs utilisation, limited by {found['limit']}", found["utilisation"], "", "", True),
    ]


def vit() -> list[Row]:
    """ViT-L/16 on v5p:4x4x4."""
    found, *_ = plan("vit_l16_imagenet", "v5p:4x4x4")
    used = found["utilisation"]
    return [Row(f"ViT-L/16, utilisation, limited by {found['limit']}", used, "", "≥ 0.55", used >= 0.55)]


def big_vision() -> list[Row]:
    """SigLIP B/16 at a batch of 32,768 on v5e:16x16, ours and in big_vision's way."""
    ours, *_ = plan("siglip_b16", "v5e:16x16")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "facts.json")
        command = [sys.executable, "-m", "tests.benchmarks.two_towers", str(answer)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": folder}, check=True)
        theirs = Plan(json.loads(answer.read_text()))
    memory_target = f"≤ {theirs.memory_needed / GIB:.3f} in big_vision's way"
    needed, seconds = ours["memory_needed"], ours["step_seconds"]
    sent = sum(ours["sent"].values()) / 1e6
    return [
        Row("SigLIP B/16, memory a chip", needed / GIB, "GiB", memory_target, needed <= theirs.memory_needed),
        Row(
            "SigLIP B/16, a step at best",
            1e3 * seconds,
            "ms",
            f"≤ {1e3 * theirs.step_seconds:.1f} in big_vision's way",
            seconds <= theirs.step_seconds,
        ),
        Row("SigLIP B/16, sent by a chip", sent, "MB", f"({sum(theirs.sent.values()) / 1e6:.1f} in its way)", True),
    ]


def checkpoints() -> list[Row]:
    """Host memory to save a state of 2 GiB, beyond its arrays, while the next step changes them; and to restore it in a
    process that holds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for what in ("save", "restore"):
            command = [sys.executable, "-m", "tests.benchmarks.pods", what, folder]
            done = subprocess.run(command, cwd=ROOT, env=CPU, stdout=subprocess.PIPE, text=True, check=True)
            share = int(done.stdout.splitlines()[-1]) / STATE
            rows.append(Row(f"host memory to {what} 2 GiB", share, "of the state", f"≤ {SAVED}", share <= SAVED))
    return rows


def checkpoint(what: str, folder: Path) -> None:
    """Saves or restores; prints the bytes that it took."""
    import jax
    import jax.numpy as jnp

    from jmm.distributed.mesh import MeshShape, make_mesh
    from jmm.distributed.sharding import replicated
    from jmm.experiment import Checkpoint
    from jmm.training.checkpoint import Checkpoints
    from jmm.training.state import TrainState

    def make() -> TrainState:
        third = {str(i): jnp.full((STATE // 3 // 16 // 4,), i, jnp.float32) for i in range(16)}
        moments = [grown(third), grown(third)]
        return TrainState(jnp.int32(1), third, {}, moments, None, jax.random.key(0))

    def grown(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf + 1, tree)

    place = replicated(make_mesh(MeshShape()))
    shapes = jax.eval_shape(make)
    shardings = jax.tree.map(lambda _: place, shapes)
    state = jax.block_until_ready(jax.jit(make, out_shardings=shardings)()) if what == "save" else None
    saving = Checkpoints(folder, Checkpoint())
    before = memory(NOW)
    reset()
    if state is not None:
        saving.save(state, 0, {})
        # The next step is given the arrays before all are written.
        step = jax.jit(lambda s: s.replace(params=grown(s.params), opt_state=grown(s.opt_state)), donate_argnums=0)
        state = jax.block_until_ready(step(state))
    else:
        found = saving.restore(shapes, shardings, print)
        assert found is not None
        jax.block_until_ready(found)
    saving.close()
    print(memory(PEAK) - before)


MEASUREMENTS = {"clip": clip, "vit": vit, "big_vision": big_vision, "checkpoints": checkpoints}

if __name__ == "__main__":
    if sys.argv[1:2] in (["save"], ["restore"]):
        checkpoint(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(run(MEASUREMENTS, __doc__ or ""))
