"""The `jmm` command. One sub-command is one short function; what it needs is imported when it runs. Those that use a
model on the user's own files are in `jmm.commands`."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jmm
from jmm.commands import Result, add_commands
from jmm.data_commands import add_data_commands
from jmm.errors import UserError

if TYPE_CHECKING:
    from jmm.experiment import Experiment
    from jmm.model import Model


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; gives its exit code."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in SETTING_FIELDS:
        parser.error(f"jmm {options.command} does not know {' '.join(rest)}; see jmm {options.command} --help")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"jmm: {message}", file=sys.stderr)
            result = options.run(options, rest) if options.command in SETTING_FIELDS else options.run(options)
    except UserError as error:
        print(f"jmm {options.command}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"jmm {options.command}: interrupted", file=sys.stderr)
        return 130
    text, code = result.pop("text"), result.pop("code", 0)
    try:
        print(json.dumps(result) if options.json else text, flush=True)
    except BrokenPipeError:
        # Whoever reads has enough (`jmm search … | head`); nothing is left for Python to flush as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(code)


def make_parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    parser = Parser(
        prog="jmm",
        description="Multimodal transformers in JAX: train, evaluate and use them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jmm {jmm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[..., Result], text: str, among: Any = commands, **settings: Any
    ) -> argparse.ArgumentParser:
        sub = among.add_parser(name, help=text, description=text, allow_abbrev=False, **settings)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return sub

    sub = command("train", train, "Train an experiment, or go on where it stopped.", add_help=False)
    sub.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.py", help="its function experiment() says what to train"
    )
    sub.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="with a FILE.py: every field that can be set, and its default",
    )
    sub.add_argument("--workdir", type=Path, metavar="DIR", help="where checkpoints, metrics and pictures go")
    sub.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="MODEL",
        help="start from the system, preprocessing and weights of a published folder, a workdir or a model of jmm",
    )
    sub.add_argument("--show-sharding", action="store_true", help="print where every array lies on the mesh, and stop")
    sub.add_argument("--profile", action="store_true", help="record a trace of ten steps in DIR/profile")
    sub.add_argument("--cluster", action="store_true", help="join the processes that Cloud TPU, GKE or Slurm tells of")
    sub.add_argument("--coordinator", metavar="HOST:PORT", help="process 0 of several that train together")
    sub.add_argument("--num-processes", type=int, default=1, metavar="N", help="how many they are")
    sub.add_argument("--process-id", type=int, default=0, metavar="I", help="which of them this is, from 0")
    sub.add_argument(
        "--patience", type=float, metavar="S", help="seconds without progress after which several end with 75 (1800)"
    )

    sub = command("plan", plan, "Compile an experiment's step for a TPU slice that is not here, and say what it needs.")
    sub.add_argument("file", type=Path, metavar="FILE.py", help="its function experiment() says what is to be trained")
    sub.add_argument("--topology", required=True, metavar="v5e:16x16", help="generation and shape of the slice")
    sub.add_argument("--slices", type=int, default=1, metavar="N", help="so many slices train as one (default: 1)")
    sub.add_argument("--price", type=float, metavar="P", help="of a chip for an hour, to give the cost of all steps")
    sub.add_argument("--search", type=int, metavar="N", help="compile up to N arrangements, and give the best that fit")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="write plan.txt, plan.json and plan.png there")
    sub.epilog = "Fields of the experiment are set as in training: --mesh.fsdp 16 --batch_size 32768"

    sub = command("evaluate", evaluate, "Run the evaluations of a workdir on its newest checkpoint.")
    sub.add_argument("workdir", type=Path, metavar="DIR", help="a workdir of jmm train")
    sub.epilog = "Fields of the evaluations are set as in training: --evaluations.0.count 50"

    add_commands(command)

    sub = command("convert", convert, "Write a model in another form.")
    sub.add_argument("source", type=Path, metavar="SRC", help="a workdir, a model of jmm, or a published folder")
    sub.add_argument("target", type=Path, metavar="DST", help="the new folder; it must not be there")
    sub.add_argument("--to", required=True, choices=FORMS, help="; ".join(f"{k}: {v}" for k, v in FORMS.items()))
    sub.add_argument("--average", action="store_true", help="of a workdir, the moving average of the weights")
    sub.add_argument("--image-size", type=image_size, metavar="HxW", help="interpolate learned positions to this size")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type of floats in hf (as they are)")
    sub.add_argument("--allow-pickle", action="store_true", help="read pytorch_model.bin, as weights only")

    text = "Convert, inspect and time your own data, and train a tokenizer on it."
    data = commands.add_parser("data", help=text, description=text, allow_abbrev=False)
    kinds = data.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    add_data_commands(partial(command, among=kinds))

    sub = command("zoo", zoo, "List the systems: paper, inputs, outputs, where each was checked.")
    sub.add_argument("name", nargs="?", metavar="NAME", help="one of them, in full")
    return parser


SETTING_FIELDS = ("train", "plan", "evaluate")
"""Commands behind which fields of the experiment may stand."""

FORMS = {
    "hf": "what transformers reads with from_pretrained",
    "jmm": "what jmm.load reads",
    "stablehlo": "programs for CPU, GPU and TPU that need only jax",
    "onnx": "for onnxruntime",
    "savedmodel": "for TensorFlow",
}
"""What `jmm convert` writes."""


def image_size(text: str) -> tuple[int, int]:
    """224 or 224x336, height first."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give it as 224 or, height first, 224x336")
    return int(sides[0]), int(sides[-1])


class Parser(argparse.ArgumentParser):
    """Errors are one sentence."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message}\n")


def train(options: argparse.Namespace, overrides: list[str]) -> Result:
    """jmm train FILE.py --workdir DIR [--field.sub value …]"""
    if options.file is None:
        return {"text": train_usage(options), "usage": train_usage(options)} if options.help else _need("FILE.py")
    from jmm.overrides import override, read_experiment_file

    if overrides and not options.file.exists():
        raise UserError(f"there is no experiment file {options.file}; FILE.py comes before the fields it sets", code=2)
    base = read_experiment_file(options.file)
    if options.source:
        from jmm.interop.initial import start_from

        base = start_from(base, options.source, options.workdir)
    if options.help:
        print(train_usage(options))
    experiment = override(base, ["--help"] if options.help else overrides, f"jmm train {options.file}")
    if options.cluster:
        from jmm.distributed.processes import join_cluster

        if options.coordinator or options.num_processes > 1:
            raise UserError("--cluster finds the other processes itself; --coordinator names them: give one", code=2)
        join_cluster()
    elif options.num_processes > 1 or options.coordinator:
        from jmm.distributed.processes import Cluster, initialize

        if not options.coordinator:
            return _need("--coordinator HOST:PORT, the address of process 0,")
        initialize(Cluster(options.coordinator, options.num_processes, options.process_id))
    if options.show_sharding:
        return show_sharding(experiment)
    if options.workdir is None:
        return _need("--workdir DIR")
    return run_training(experiment, options)


def _need(what: str) -> Result:
    raise UserError(f"{what} is missing; see jmm train --help", code=2)


def train_usage(options: argparse.Namespace) -> str:
    """Help of `jmm train` itself."""
    parser = make_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices["train"].format_help()


def show_sharding(experiment: "Experiment") -> Result:
    """Where every array of the state lies."""
    from rich.console import Console
    from rich.table import Table

    from jmm.distributed.sharding import placement_table
    from jmm.training.step import build

    program = build(experiment)
    rows = placement_table(program.state, program.shardings)
    total = sum(row.bytes_per_device for row in rows)
    mesh = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    table = Table("path", "shape", "placement", "bytes a device", title=f"mesh: {mesh}")
    table.columns[3].justify = "right"
    for row in rows:
        shape = " × ".join(map(str, row.shape)) or "scalar"
        table.add_row(row.path, shape, row.axes, f"{row.bytes_per_device:,}")
    table.add_row("in all", "", "", f"{total:,}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    arrays = [{**vars(row), "shape": list(row.shape)} for row in rows]
    return {
        "text": capture.get().rstrip(),
        "mesh": dict(program.mesh.shape),
        "arrays": arrays,
        "bytes_per_device": total,
    }


def run_training(experiment: "Experiment", options: argparse.Namespace) -> Result:
    """Trains, draws the report and says what came of it."""
    from rich.console import Console

    from jmm.distributed.processes import is_first
    from jmm.evaluation.report import write_report
    from jmm.interop.initial import initial_weights
    from jmm.training.checkpoint import hush_late_writes
    from jmm.training.loop import PATIENCE
    from jmm.training.loop import train as run
    from jmm.training.workdir import self_contained

    hush_late_writes()
    console = Console(stderr=True, quiet=options.json or not is_first())
    initial = initial_weights(experiment)
    patience = PATIENCE if options.patience is None else options.patience
    outcome = run(
        experiment, options.workdir, console=console, profile=options.profile, initial=initial, patience=patience
    )
    pictures = write_report(self_contained(experiment, options.workdir), outcome.model, options.workdir)
    checkpoint = options.workdir / "checkpoints" / str(outcome.step)
    figures = {name: value for name, value in outcome.figures.items() if name.startswith("eval/")}
    lines = [f"{name.removeprefix('eval/'):<28}{value:.4f}" for name, value in figures.items()]
    lines.append(f"{'checkpoint':<28}{checkpoint}")
    lines += [f"{'picture':<28}{path}" for path in pictures]
    lines.append(f"{'try next':<28}{next_command(experiment, outcome.model, options.workdir)}")
    if not is_first():
        lines = [f"process {options.process_id} is done"]
    return {
        "text": "\n".join(lines),
        "step": outcome.step,
        "figures": outcome.figures,
        "checkpoint": str(checkpoint),
        "pictures": [str(path) for path in pictures],
    }


def next_command(experiment: "Experiment", model: "Model", workdir: Path) -> str:
    """What to do with what was trained."""
    from jmm.protocol import Writer, inputs_of

    labels = next((e.labels for e in experiment.evaluations if hasattr(e, "labels")), None)
    fields = experiment.model.batch_spec(1)
    if labels and "text" in fields:
        return f'jmm classify {workdir} photo.png --labels "{",".join(labels[:3])}"'
    known = {**fields, "codes": None}
    reads = inputs_of(model.module, known, "prefill") if isinstance(model.module, Writer) else {}
    if "codes" in reads:
        prompt = f' --prompt "{experiment.data.source("held_out")[0]["caption"]}"' if "text" in reads else ""
        return f"jmm generate {workdir}{prompt}"
    if "image" in reads:
        return f"jmm caption {workdir} photo.png"
    return f"jmm evaluate {workdir}"


def plan(options: argparse.Namespace, overrides: list[str]) -> Result:
    """jmm plan FILE.py --topology v5e:16x16 [--field.sub value …]"""
    from jmm.planning.chips import slice_of
    from jmm.planning.compiler import compiled
    from jmm.planning.plan import Plan
    from jmm.planning.search import search

    slice_of(options.topology, options.slices)
    if options.price is not None and not options.price > 0:
        raise UserError(f"--price is that of a chip for an hour, above 0, not {options.price:g}", code=2)
    if options.search is not None and options.search < 1:
        raise UserError(f"--search is the number of arrangements to try, at least 1, not {options.search}", code=2)
    asked = (options.file, overrides, options.topology, options.slices)
    head, more = "", {}
    if options.search:
        kept = search(*asked, options.search, compiled, lambda line: print(line, file=sys.stderr, flush=True))
        best = [(" ".join(fields), each) for fields, each in kept[:BEST]]
        head = "".join(f"{1e3 * each.step_seconds:10.2f} ms  {fields}\n" for fields, each in best) + "\n"
        more = {"best": [{"fields": fields, **each.as_json(options.price)} for fields, each in best]}
        found = kept[0][1]
    else:
        found = Plan(compiled(*asked))
    text, figures = head + found.as_text(options.price), found.as_json(options.price) | more
    if options.to:
        options.to.mkdir(parents=True, exist_ok=True)
        (options.to / "plan.txt").write_text(text + "\n")
        (options.to / "plan.json").write_text(json.dumps(figures, indent=2) + "\n")
        found.draw(options.to / "plan.png")
        text += f"\n{'written':<28}{options.to}"
    return {"text": text, "code": 0 if found.works else 1, **figures}


BEST = 3
"""Arrangements that a search shows."""


def evaluate(options: argparse.Namespace, overrides: list[str]) -> Result:
    """jmm evaluate DIR [--evaluations.0.field value …]"""
    from jmm.evaluation.report import write_report
    from jmm.interop.model import load_step
    from jmm.overrides import override
    from jmm.training.loop import evaluate as run
    from jmm.training.workdir import read_experiment

    experiment = read_experiment(options.workdir)
    if not experiment.evaluations:
        raise UserError(f"the experiment of {options.workdir} names no evaluations")
    other = next((each for each in overrides if not each.startswith("--evaluations.") and each.startswith("-")), None)
    if other:
        raise UserError(f"{other} is nothing to evaluate with; --evaluations.0.count 50 sets a field of one", code=2)
    experiment = override(experiment, overrides, f"jmm evaluate {options.workdir}") if overrides else experiment
    model, step = load_step(options.workdir)
    figures = run(experiment, model)
    pictures = write_report(experiment, model, options.workdir)
    lines = [f"{'step':<28}{step}"]
    lines += [f"{name.removeprefix('eval/'):<28}{value:.4f}" for name, value in figures.items()]
    lines += [f"{'picture':<28}{path}" for path in pictures]
    return {
        "text": "\n".join(lines),
        "step": step,
        "figures": figures,
        "pictures": [str(path) for path in pictures],
    }


def convert(options: argparse.Namespace) -> Result:
    """jmm convert SRC DST --to hf|jmm|stablehlo|onnx|savedmodel"""
    import jax

    from jmm.distributed.mesh import MeshShape
    from jmm.interop.convert import check_target
    from jmm.training.workdir import EXPERIMENT_FILE

    if options.dtype and options.to != "hf":
        raise UserError(f"--dtype is for --to hf; {options.to} has the types of jmm", code=2)
    check_target(options.target)
    average = options.average if (options.source / EXPERIMENT_FILE).exists() else options.average or None
    # Cut over all devices, so that what fits on none of them alone can be converted.
    mesh = MeshShape(data=1, fsdp=len(jax.devices()))
    model = jmm.load(
        options.source, mesh=mesh, image_size=options.image_size, average=average, allow_pickle=options.allow_pickle
    )
    jmm.save(model, options.target, options.to, **({"dtype": options.dtype} if options.dtype else {}))
    written = [path for path in sorted(options.target.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(options.target)): path.stat().st_size for path in written}
    lines = [f"{'system':<28}{type(model.config).__module__}", f"{'written':<28}{options.target}"]
    lines += [f"  {name:<25} {size:,} bytes" for name, size in files.items()]
    return {"text": "\n".join(lines), "target": str(options.target), "to": options.to, "files": files}


def zoo(options: argparse.Namespace) -> Result:
    """jmm zoo [NAME]"""
    from jmm.models.zoo import systems

    known = systems()
    if options.name is None:
        width = max(map(len, known))
        lines = [f"{name:<{width}}  {system.title}" for name, system in known.items()]
        return {"text": "\n".join(lines), "systems": {name: vars(system) for name, system in known.items()}}
    if options.name not in known:
        raise UserError(f"there is no system {options.name}; there are {', '.join(known)}")
    return {"text": known[options.name].text, "system": vars(known[options.name])}
