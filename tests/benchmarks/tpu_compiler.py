"""Asks the real TPU compiler, on any machine: what compiles, in how much memory, in how many estimated cycles.

Run as a process of its own (`ask`), because the compiler's environment must be set before jax is imported and a cycle
estimate can abort the process:

    python -m tests.benchmarks.tpu_compiler compile '{"topology": "v5e:2x2", "length": 1024}'

Every answer is one line of JSON. Needs the `tpu` extra, but no TPU.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from jmm.planning.compiler import ENVIRONMENT

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
LENGTHS = (197, 1024, 4096)

CASES: dict[str, dict[str, Any]] = {
    # Every formula, every shape of bias, grouped heads, every head width and both types, among these.
    "full, 32 wide": {"width": 32},
    "causal, 64 wide": {"width": 64, "mask": "causal"},
    "prefix, bias of heads, 64 wide": {"width": 64, "mask": "prefix", "bias": (1, 8)},
    "segments, grouped, one bias, 72 wide, float32": {
        **{"width": 72, "mask": "segments", "kv_heads": 2, "bias": (1, 1), "dtype": "float32"}
    },
    "media or window, 80 wide": {"width": 80, "mask": "media or window"},
    "valid prefix of each row, bias of rows, 96 wide": {"width": 96, "mask": "rows", "bias": (2, 1)},
    "prefix and segments, 128 wide, one key head": {"width": 128, "mask": "prefix and segments", "kv_heads": 1},
    "window, bias of all, 128 wide, float32": {"width": 128, "mask": "window", "bias": (2, 8), "dtype": "float32"},
    "every formula at once, grouped, 256 wide": {"width": 256, "mask": "all", "kv_heads": 2},
    "every formula at once, bias of all, 256 wide, float32": {
        **{"width": 256, "mask": "all", "bias": (2, 8), "dtype": "float32"}
    },
}


def ask(question: str, *, timeout: float = 1800, profile: bool = False, **arguments: Any) -> dict[str, Any]:
    """Runs one question in a fresh process and gives its answer; {"error": …} if the process ended without one."""
    with tempfile.TemporaryDirectory() as folder:
        # The static profile is asked for through the compiler's own flags; its folder must exist.
        flags = {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}"} if profile else {}
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.tpu_compiler", question, json.dumps(arguments)],
            env={**os.environ, **flags},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        why = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no output"]
        return {"error": f"exit {done.returncode}: {why[0][:300]}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def one_chip(topology: str) -> Any:
    """A mesh of one chip of a slice."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:1]
    return jax, Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def compiled(topology: str, run: Any, *arrays: Any, row_major: bool = False) -> Any:
    """`run` compiled for one chip; arrays lie as the compiler likes best, or all with the last axis innermost."""
    jax, mesh = one_chip(topology)
    from jax.experimental.layout import Format, Layout

    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    inputs: Any = where
    if row_major:
        inputs = jax.tree.map(lambda x: Format(Layout(tuple(range(x.ndim))), where), arrays)
    with jax.set_mesh(mesh):
        outputs: Any = where
        if row_major:
            outputs = jax.tree.map(lambda x: Format(Layout(tuple(range(x.ndim))), where), jax.eval_shape(run, *arrays))
        return jax.jit(run, in_shardings=inputs, out_shardings=outputs).lower(*arrays).compile()


def with_gradients(run: Any) -> Any:
    """(operands, cotangent, labels) → output and gradients."""
    import jax

    def both(operands: Any, cotangent: Any, *labels: Any) -> Any:
        out, pull = jax.vjp(lambda operands: run(*operands, *labels), operands)
        return out, pull(cotangent)

    return both


def mask_of(name: str | None, ids: Any, length: int) -> Any:
    """A formula of the field over the labels `ids` [B, L]."""
    from jmm.kernels import masks

    formulas = {
        None: lambda: None,
        "causal": masks.causal,
        "prefix": lambda: masks.prefix(length // 4),
        "window": lambda: masks.causal() & masks.window(max(length // 8, 1)),
        "segments": lambda: masks.causal() & masks.segments(ids, ids),
        "media or window": lambda: masks.media(ids, ids) | masks.window(max(length // 8, 1)),
        "rows": lambda: masks.prefix(ids[:, 0]) & masks.valid(ids > 0),
        "all": lambda: (
            ((masks.prefix(ids[:, 0]) & masks.segments(ids, ids)) | (masks.media(ids, ids) & masks.window(length // 2)))
            & (masks.valid(ids > 0) | masks.causal())
        ),
        "prefix and segments": lambda: masks.prefix(length // 4) & masks.segments(ids, ids),
    }
    return formulas[name]()


def compile_case(topology: str, length: int, case: str) -> dict[str, Any]:
    """Forward and backward of one case: seconds to compile, temporary MiB a chip."""
    import jax
    import jax.numpy as jnp

    from jmm.kernels import attention

    what = CASES[case]
    rows, heads, width, dtype = 2, 8, what["width"], jnp.dtype(what.get("dtype", "bfloat16"))
    kv_heads, bias_shape, mask = what.get("kv_heads", heads), what.get("bias"), what.get("mask")

    def run(q: Any, k: Any, v: Any, bias: Any, ids: Any) -> Any:
        formula = mask_of(mask, ids, length)
        return attention(q, k, v, mask=formula, bias=bias)

    def array(*shape: int, dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    q, k = array(rows, length, heads, width), array(rows, length, kv_heads, width)
    bias = None if bias_shape is None else array(*bias_shape, length, length, dtype=jnp.float32)
    start = time.perf_counter()
    program = compiled(
        TOPOLOGIES[topology], with_gradients(run), (q, k, k, bias), q, array(rows, length, dtype=jnp.int32)
    )
    seconds = time.perf_counter() - start
    text = program.as_text()
    kernels = {name for name in ("forward", "queries", "keys", "bias") if f"attention_{name}" in text}
    assert kernels == {"forward", "queries", "keys"} | ({"bias"} if bias is not None else set()), kernels
    return {
        "topology": topology,
        "length": length,
        "case": case,
        "seconds": round(seconds, 2),
        "temporary_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20, 2),
    }


def compile_all(topologies: list[str], lengths: list[int], cases: list[str] | None = None) -> dict[str, Any]:
    """The whole table, or some cases of it."""
    rows = []
    for topology in topologies:
        for length in lengths:
            for case in cases or CASES:
                try:
                    rows.append(compile_case(topology, length, case))
                except Exception as error:  # a row of the table says so
                    rows.append({"topology": topology, "length": length, "case": case, "error": str(error)[:300]})
    return {"rows": rows}


def memory(contestant: str, mask: str | None, row_major: bool = False) -> dict[str, Any]:
    """Temporary bytes of forward and backward, B 8, 12 heads, length 4,096, D 64, bfloat16, for v5e.

    Arrays between the operations of a model lie as the compiler chooses; `row_major` shows what it costs if they must
    be turned.
    """
    import jax
    import jax.numpy as jnp

    rows, heads, length, width = 8, 12, 4096, 64
    q = jax.ShapeDtypeStruct((rows, length, heads, width), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    run = functools.partial(CONTESTANTS[contestant], mask=mask)
    program = compiled(TOPOLOGIES["v5e"], with_gradients(run), (q, q, q), q, ids, row_major=row_major)
    return {"bytes": program.memory_analysis().temp_size_in_bytes}


def _ours(q: Any, k: Any, v: Any, ids: Any, *, mask: str | None) -> Any:
    from jmm.kernels import attention

    return attention(q, k, v, mask=mask_of(mask, ids, q.shape[1]), implementation="pallas_tpu")


def _dense(q: Any, k: Any, v: Any, ids: Any, *, mask: str | None) -> Any:
    import jax

    formula = mask_of(mask, ids, q.shape[1])
    shown = None if formula is None else formula.dense(q.shape[1], k.shape[1])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=shown)


def _flash(q: Any, k: Any, v: Any, ids: Any, *, mask: str | None) -> Any:
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    labels = SegmentIds(ids, ids) if mask == "segments" else None
    out = flash_attention(q, k, v, segment_ids=labels, causal=mask is not None, sm_scale=q.shape[-1] ** -0.5)
    return out.swapaxes(1, 2)


def _splash(q: Any, k: Any, v: Any, ids: Any, *, mask: str | None) -> Any:
    import jax
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash

    length, heads = q.shape[1:3]
    one = splash.FullMask((length, length)) if mask is None else splash.CausalMask((length, length))
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernel.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), 512))
    many = splash.MultiHeadMask([one] * heads)
    run = kernel.make_splash_mha(many, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    if mask == "segments":
        labels = kernel.SegmentIds(ids, ids)
        return jax.vmap(run)(q, k, v, labels).swapaxes(1, 2)
    return jax.vmap(run)(q, k, v).swapaxes(1, 2)


CONTESTANTS = {"ours": _ours, "dense": _dense, "flash": _flash, "splash": _splash}


def cycles(
    contestant: str, topology: str, mask: str | None, length: int, blocks: tuple[int, int], width: int
) -> dict[str, Any]:
    """The static estimate of a forward kernel over two heads, in cycles. Ask with `profile=True`."""
    import jax
    import jax.numpy as jnp

    if contestant == "ours":
        _read_lists_by_arithmetic()
    stored = jax.ShapeDtypeStruct((1, 2, length, width), jnp.bfloat16)
    run = functools.partial(_one_kernel, contestant, mask, blocks)
    text = compiled(TOPOLOGIES[topology], run, stored, stored, stored).as_text()
    kernels = [line for line in text.splitlines() if "custom-call(" in line]
    found = [int(n) for line in kernels for n in re.findall(r'estimated_cycles":"(\d+)', line)]
    (estimate,) = found
    return {"cycles": estimate}


def _one_kernel(contestant: str, mask: str | None, blocks: tuple[int, int], q: Any, k: Any, v: Any) -> Any:
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    from jmm.kernels import masks, pallas_tpu, tpu_blocks
    from jmm.kernels.core import Operands, Problem

    scale = q.shape[-1] ** -0.5
    if contestant == "flash":
        sizes = BlockSizes(block_q=blocks[0], block_k_major=blocks[1], block_k=blocks[1], block_b=1)
        return flash_attention(q, k, v, causal=mask == "causal", sm_scale=scale, block_sizes=sizes)
    formula = mask_of(mask, None, q.shape[2]) or masks.First(q.shape[2])
    problem = Problem(masks.without_labels(formula), scale, blocks=tpu_blocks.BlockSizes(*blocks))
    return pallas_tpu.forward(problem, Operands(q, k, v, None, (), ()))


def _read_lists_by_arithmetic() -> None:
    """Makes the kernels read their lists of blocks by arithmetic on the step instead of from memory.

    The static profile follows a condition exactly if it hangs on the place in the grid, and takes one that hangs on
    memory as mostly false: half of the kernel would not be counted. The arithmetic itself is counted, against us.
    """
    import jax.numpy as jnp
    import numpy as np

    from jmm.kernels import pallas_tpu, tpu_call

    def unpacked(table: Any, order: Any, row: Any, step: Any) -> Any:
        def entry(values: Any) -> Any:
            values = np.asarray(values)[0].tolist()
            found = jnp.int32(values[0])
            for i, value in enumerate(values[1:], start=1):
                found = jnp.where(step == i, jnp.int32(value), found)
            return found

        edge = entry(order.edge)
        fields = (entry(each) for each in (order.major, order.minor, order.work))
        return tpu_call.Step(*fields, (edge & 1) == 1, (edge & 2) == 2)

    pallas_tpu.unpacked = unpacked


def ring(parts: int = 4) -> dict[str, Any]:
    """The ring over a sequence cut in parts: how many transfers have a kernel between their start and their end.

    The text of a compiled program lists operations in the order in which they run.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from jmm.distributed.mesh import MeshShape, make_mesh
    from jmm.distributed.sharding import on_mesh
    from jmm.kernels import attention, masks

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES["v5e"]).devices
    mesh = make_mesh(MeshShape(data=1, sequence=parts), list(devices))
    where = jax.NamedSharding(mesh, jax.P(None, "sequence"))
    q = jax.ShapeDtypeStruct((2, 8192, 8, 128), jnp.bfloat16)
    step = with_gradients(lambda q, k, v: attention(q, k, v, mask=masks.causal()))
    with on_mesh(mesh):
        lowered = jax.jit(step, in_shardings=where, out_shardings=where).lower((q, q, q), q)
        lines = lowered.compile().as_text().splitlines()
    started: dict[str, int] = {}
    covered = kernels = 0
    for line in lines:
        name, _, operation = line.strip().removeprefix("ROOT ").partition(" = ")
        if "custom-call(" in operation and "attention" in name:
            kernels += 1
        elif " collective-permute-start(" in operation:
            started[name] = kernels
        elif found := re.search(r" collective-permute-done\((?:.* )?(%[\w.-]+)\)", operation):
            covered += kernels > started[found[1]]
    return {"transfers": len(started), "covered": covered, "gathers": sum(" all-gather" in line for line in lines)}


def contrastive_loss(batch: int) -> dict[str, Any]:
    """The contrastive loss and its gradients alone, over a 16 × 16 slice of v5e."""
    import jax
    import jax.numpy as jnp

    from jmm.distributed.sharding import batch_sharding, on_mesh, replicated
    from jmm.objectives.contrastive import softmax_contrastive

    mesh = _slice()
    side = jax.ShapeDtypeStruct((batch, 768), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    by_row, whole = batch_sharding(mesh), replicated(mesh)
    run = jax.value_and_grad(softmax_contrastive, argnums=(0, 1, 2))
    with on_mesh(mesh):
        step = jax.jit(run, in_shardings=(by_row, by_row, whole), out_shardings=(whole, (by_row, by_row, whole)))
        program = step.lower(side, side, scale).compile()
    return {"bytes": program.memory_analysis().temp_size_in_bytes}


def contrastive_step(batch: int) -> dict[str, Any]:
    """A whole training step of CLIP with ViT-L/16 on that slice: bytes a chip."""
    from data_pipelines.digits import Digits
    from jmm.distributed.sharding import on_mesh
    from jmm.experiment import Experiment
    from jmm.models import clip, vit
    from jmm.parts.transformer import TransformerConfig
    from jmm.training.step import build

    def tower(width: int, depth: int) -> TransformerConfig:
        return TransformerConfig(width=width, depth=depth, num_heads=width // 64, mlp_dim=4 * width, remat="full")

    image = vit.ImageTower(tower(1024, 24), image_size=(224, 224), patch_size=16)
    model = clip.Config(image, clip.TextTower(tower(768, 12)), embed_dim=768)
    experiment = Experiment(name="pod", model=model, data=Digits(), steps=10, batch_size=batch, precision="bfloat16")
    program = build(experiment, _slice())
    with on_mesh(program.mesh):
        found = program.step.lower(program.state, model.batch_spec(batch)).compile().memory_analysis()
    return {"temporary": found.temp_size_in_bytes, "arguments": found.argument_size_in_bytes}


def _slice() -> Any:
    from jax.experimental import topologies

    from jmm.distributed.mesh import MeshShape, make_mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices
    return make_mesh(MeshShape(data=16, fsdp=16), list(devices))


QUESTIONS = {
    "compile": compile_all,
    "memory": memory,
    "cycles": cycles,
    "ring": ring,
    "contrastive_loss": contrastive_loss,
    "contrastive_step": contrastive_step,
}


def main() -> None:
    """Answers one question."""
    parser = argparse.ArgumentParser(description="Ask the TPU compiler.")
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("arguments", nargs="?", default="{}", help="of the question, as JSON")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # jax is not imported yet
    print(json.dumps(QUESTIONS[options.question](**json.loads(options.arguments))))


if __name__ == "__main__":
    main()
