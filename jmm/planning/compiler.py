"""Compiles the step of an experiment for a slice that is not there, in a process of its own.

The compiler's environment must be set before jax is imported, and it may end the process that runs it:

    python -m jmm.planning.compiler REQUEST.json ANSWER.json

The request holds `file`, `overrides`, `topology` and `slices`; the answer `facts`, or the `error` of a user.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from jmm.errors import UserError
from jmm.planning.chips import Slice, slice_of

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""With which the compiler works on a machine without a TPU, beside other processes, and says nothing of its own."""

Facts = dict[str, Any]


def compiled(file: Path, overrides: Sequence[str], topology: str, slices: int = 1) -> Facts:
    """What the compiler makes of an experiment's steps, of training and of evaluation, as JSON has it.

    Raises:
      UserError: the experiment cannot be read or built, the mesh does not fit the slice, the compiler is not there.
    """
    try:
        version("libtpu")
    except PackageNotFoundError:
        raise UserError('the TPU compiler is missing; pip install -e ".[tpu]" brings it') from None
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        asked = {"file": str(file), "overrides": list(overrides), "topology": topology, "slices": slices}
        request.write_text(json.dumps(asked))
        done = subprocess.run(
            [sys.executable, "-m", "jmm.planning.compiler", str(request), str(answer)],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.exists():
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
            raise UserError(f"the compiler ended with {done.returncode}: {last[0][:300]}")
        found: Facts = json.loads(answer.read_text())
    if "error" in found:
        raise UserError(found["error"], found["code"])
    facts: Facts = found["facts"]
    return facts


def answer(request: dict[str, Any]) -> Facts:
    """The facts of one request."""
    import jax
    from jax.experimental import topologies

    from jmm.distributed.mesh import make_mesh
    from jmm.distributed.sharding import on_mesh
    from jmm.overrides import override, read_experiment_file
    from jmm.training.loop import wanted
    from jmm.training.step import build

    experiment = read_experiment_file(Path(request["file"]))
    experiment = override(experiment, request["overrides"], f"jmm plan {request['file']}")
    if experiment.precision == "auto":
        experiment = replace(experiment, precision="bfloat16")
    asked = slice_of(request["topology"], request["slices"])
    several = {"num_slices": asked.count} if asked.count > 1 else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=asked.topology, **several).devices
    program = build(experiment, make_mesh(experiment.mesh, list(devices)))
    batch = {name: spec for name, spec in batch_of(experiment).items() if name in wanted(program)}
    with on_mesh(program.mesh):
        lowered = program.step.lower(program.state, batch)  # type: ignore[attr-defined]
    mesh = dict(program.mesh.shape)
    return {
        "experiment": experiment.name,
        "topology": asked.name,
        "slices": asked.count,
        "mesh": mesh,
        "batch_size": experiment.batch_size,
        "steps": experiment.steps,
        "precision": experiment.precision,
        "parameters": sum(prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params)),
        "model_flops": model_flops(experiment),
        "state_bytes": state_bytes(program, batch),
        "evaluation": evaluation(program, asked) if experiment.evaluations else None,
        **kept(lowered, mesh, asked),
    }


def evaluation(program: Any, asked: Slice) -> Facts:
    """The facts of the forward pass with which evaluations read held-out examples, `rows` at a time."""
    from functools import partial

    import jax

    from jmm.distributed.mesh import BATCH_AXES
    from jmm.distributed.sharding import batch_sharding, on_mesh, replicated
    from jmm.model import Model
    from jmm.protocol import forward, inputs_of

    def placed(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    experiment, mesh = program.experiment, program.mesh
    state = jax.tree.map(placed, program.state, program.shardings)
    ways = prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = -(-Model.batch_size // ways) * ways
    fields = {name: placed(each, batch_sharding(mesh)) for name, each in experiment.model.batch_spec(rows).items()}
    run = jax.jit(partial(forward, program.module), out_shardings=replicated(mesh))
    with on_mesh(mesh):
        lowered = run.lower(state.variables(experiment.optimizer.freeze), inputs_of(program.module, fields))
    return {"rows": rows, **kept(lowered, dict(mesh.shape), asked)}


def kept(lowered: Any, axes: dict[str, int], asked: Slice) -> Facts:
    """The facts of a program: compiled now, or known from before."""
    path = cache(lowered.as_text(), str(asked))
    if not path.exists():
        start = time.perf_counter()
        made = compile_step(lowered, axes, asked.count)
        made["seconds_to_compile"] = round(time.perf_counter() - start, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(made))
        beside.replace(path)
    found: Facts = json.loads(path.read_text())
    return found


def cache(text: str, topology: str) -> Path:
    """Where what is known of a program is kept: by all that decides it."""
    readers = [Path(__file__).with_name(name).read_text() for name in ("hlo.py", "hlo_text.py")]
    told = [text, topology, version("libtpu"), version("jax"), *readers]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "jmm" / "plans" / f"{hashlib.sha256(chr(0).join(told).encode()).hexdigest()}.json"


def batch_of(experiment: Any) -> dict[str, Any]:
    """Shapes of a batch, of what tells packed texts apart, and of the number of each row's task."""
    import jax
    import numpy as np

    from data_pipelines.packed import FIELDS, Packed

    size = experiment.batch_size
    spec = experiment.model.batch_spec(size)
    packed = dict.fromkeys(FIELDS, spec["text"]) if isinstance(experiment.data, Packed) else {}
    return {**spec, **packed, "task": jax.ShapeDtypeStruct((size,), np.int32)}


def compile_step(lowered: Any, axes: dict[str, int], slices: int = 1) -> Facts:
    """Memory and operations of the compiled step, or by how much it does not fit."""
    import jax

    from jmm.planning.hlo import Mesh, Program

    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"RESOURCE_EXHAUSTED.*?\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
        if not needed:
            raise
        return {"fits": False, "needed": int(float(needed[1]) * 2**30), "available": int(float(needed[2]) * 2**30)}
    memory = made.memory_analysis()
    operations = Program(made.as_text(), Mesh(axes, slices)).operations()
    collectives: defaultdict[tuple[str, str, bool], float] = defaultdict(float)
    for each in operations:
        if each.collective:
            key = (each.collective.kind, "+".join(each.collective.axes), each.collective.hidden)
            collectives[key] += each.collective.sent * each.times
    return {
        "fits": True,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "work": [
            [each.times, each.flops, each.moved, each.hidden]
            for each in operations
            if each.collective is None and (each.flops or each.moved)
        ],
        "collectives": [[*key, sent] for key, sent in collectives.items()],
    }


def state_bytes(program: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Bytes on a device of each kind of array that the step is given."""
    from jmm.distributed.sharding import batch_sharding, placement_table

    state, shardings = program.state, program.shardings
    kinds = {
        "parameters": (state.params, shardings.params),
        "optimizer": (state.opt_state, shardings.opt_state),
        "moving average": (state.average, shardings.average),
        "statistics": (state.collections, shardings.collections),
        "batch": (batch, dict.fromkeys(batch, batch_sharding(program.mesh))),
    }
    found = {name: sum(row.bytes_per_device for row in placement_table(*kind)) for name, kind in kinds.items()}
    return {name: size for name, size in found.items() if size}


def model_flops(experiment: Any) -> float:
    """Of the gradient of a batch's loss, nothing computed twice: the work that a step cannot do without."""
    import jax

    from jmm.kernels.placement import for_any_platform
    from jmm.parts.transformer import with_remat
    from jmm.planning.flops import flops
    from jmm.protocol import inputs_of
    from jmm.training.optimizer import merge, split

    config = with_remat(experiment.model, "none")
    module = config.build()

    def variables() -> Any:
        fields = {name: jax.numpy.zeros(each.shape, each.dtype) for name, each in config.batch_spec(1).items()}
        return module.init(jax.random.key(0), **inputs_of(module, fields))

    def loss(params: Any, rest: Any, frozen: Any, batch: Any) -> jax.Array:
        key = {"dropout": jax.random.key(0)}
        value: jax.Array = config.loss(module, {"params": merge(params, frozen), **rest}, batch, key).value
        return value

    with for_any_platform():
        rest = dict(jax.eval_shape(variables))
        params, frozen = split(rest.pop("params"), experiment.optimizer.freeze)
        if experiment.optimizer.average is not None:
            rest["average"] = merge(params, frozen)
        return flops(jax.grad(loss), params, rest, frozen, config.batch_spec(experiment.batch_size))


def main() -> None:
    """Answers the request of one file in another."""
    request, to = (Path(each) for each in sys.argv[1:])
    try:
        found: Facts = {"facts": answer(json.loads(request.read_text()))}
    except UserError as error:
        found = {"error": str(error), "code": error.code}
    to.write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main()
