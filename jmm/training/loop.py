"""The training loop: the same for every system.

batches ─► placed ahead ─► step ─► step ─► …      the devices never wait for the host:
                            │       │             batches are on the devices before they are needed,
                         metrics, read some steps later   and figures are read when later steps already run
"""

import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from data_pipelines.careful import Skipped
from data_pipelines.mixture import task_names
from data_pipelines.packed import FIELDS, NEXT, Packed
from data_pipelines.pipeline import held_out, training_batches
from jmm.distributed.sharding import on_mesh
from jmm.distributed.watchdog import Watchdog
from jmm.errors import UserError
from jmm.experiment import Experiment
from jmm.model import Model
from jmm.protocol import Batch, Variables, inputs_of
from jmm.training.checkpoint import Checkpoints
from jmm.training.metrics import MetricsLog
from jmm.training.state import TrainState
from jmm.training.step import Program, build
from jmm.training.terminal import Terminal
from jmm.training.workdir import claim, self_contained

FEW = 16
"""Held-out examples that are read before a run begins, to see whether there are any."""
AHEAD = 2
"""Batches on the devices beside the one in use."""
LATE = 2
"""Steps that may run before the figures of a step are read."""
PROFILED = range(10, 20)
"""Steps after the start that `--profile` records: past compilation, short enough to open."""
PATIENCE = 1800.0
"""Seconds without progress; a step of a large model compiles in some minutes."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    model: Model
    step: int
    figures: dict[str, float]
    """The last value of every figure."""


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    console: Console | None = None,
    profile: bool = False,
    initial: Callable[[Mesh], Variables] | None = None,
    patience: float = PATIENCE,
) -> Outcome:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one, else from the weights that
    `initial` gives for the mesh, else from random ones. Where several processes train as one, each ends with a sentence
    and `jmm.distributed.watchdog.LOST` when another is dead, or when none came further for `patience` seconds.

    Raises:
      UserError: bad input, a loss that is not finite, a checkpoint that cannot be written, a signal to stop.
    """
    console = console or Console(quiet=True)
    with ExitStack() as stack:
        # Before all that takes time: without it the signal ends the process.
        profiler = Profiler(workdir / "profile", profile)
        stack.callback(profiler.close)
        watch = stack.enter_context(Watchdog(patience))
        program = build(self_contained(experiment, workdir))
        check_data(program)
        claim(workdir, experiment)
        experiment = program.experiment
        checkpoints = Checkpoints(workdir / "checkpoints", experiment.checkpoint)
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(program.state, program.shardings, lambda m: console.print(m, soft_wrap=True))
        state, next_example = restored or (program.init(initial), 0)
        start = int(state.step)
        metrics = MetricsLog(workdir, start)
        stack.callback(metrics.close)
        terminal = Terminal(console, experiment.steps, start, experiment.batch_size)
        stack.callback(terminal.close)
        introduce(program, workdir, start, terminal)
        skipped = Skipped(experiment.broken_share)
        stack.callback(lambda: metrics.skipped(skipped.unlisted()))
        run = Run(program, checkpoints, metrics, terminal, watch, skipped, state, next_example)
        batches = stack.enter_context(
            training_batches(
                experiment.data,
                experiment.batch_size,
                experiment.seed,
                next_example=next_example,
                process=jax.process_index(),
                processes=jax.process_count(),
                threads=experiment.data_threads,
                workers=experiment.data_workers,
                skipped=skipped,
            )
        )
        stop = stack.enter_context(StopSignal())
        placed = ahead(program, batches, next_example)
        stack.callback(lambda: watch.at("close", run.done))
        for step in range(start, experiment.steps):
            profiler.before(step - start)
            watch.at("data", step)
            batch, run.next_example = next(placed)
            watch.at("step" if step > start else "compile", step)
            run.step(batch)
            if run.due_checkpoint():
                run.save()
            if stop.asked(run.done) and run.done < experiment.steps:
                raise run.stopped(stop.name)
        run.finish()
        return Outcome(run.model(), run.done, run.figures)


class Run:
    """The state of a run between its steps."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        terminal: Terminal,
        watch: Watchdog,
        skipped: Skipped,
        state: TrainState,
        next_example: int,
    ):
        self.program, self.experiment = program, program.experiment
        self.checkpoints, self.metrics, self.terminal, self.watch = checkpoints, metrics, terminal, watch
        self.skipped = skipped
        self.state, self.next_example = state, next_example
        self.done = self.saved = int(state.step)
        self.figures = dict(metrics.latest)
        self._evaluated: dict[str, float] = {}
        self._unread: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._model: Model | None = None

    def step(self, batch: Batch) -> None:
        """Starts a step, reads the figures of an earlier one, evaluates where it is time."""
        self._evaluated = {}
        with on_mesh(self.program.mesh):
            self.state, figures = self.program.step(self.state, batch)
        self.done += 1
        self._unread.append((self.done, figures))
        self._read(LATE)
        self.checkpoints.poll()
        if self.experiment.evaluate_every and self.done % self.experiment.evaluate_every == 0:
            self.evaluate()

    def _read(self, late: int) -> None:
        while len(self._unread) > late:
            step, arrays = self._unread.popleft()
            figures = means({f"train/{name}": value for name, value in jax.device_get(arrays).items()})
            self._check_finite(step, figures)
            if step % self.experiment.log_every == 0 or step == self.experiment.steps:
                figures |= {f"data/skipped/{reason}": count for reason, count in self.skipped.counts.items()}
                self.figures |= figures
                self.metrics.write(step, figures)
                self.metrics.skipped(self.skipped.unlisted())
                speed = self.terminal.advance(step, figures["train/loss"])
                self.metrics.write_events(step, {"speed/examples_per_second": speed})

    def _check_finite(self, step: int, figures: dict[str, float]) -> None:
        bad = {name: value for name, value in figures.items() if not math.isfinite(value)}
        if bad:
            last = self.checkpoints.last()
            left = f"the last good checkpoint is step {last}" if last else "there is no checkpoint yet"
            values = ", ".join(f"{name} is {value}" for name, value in bad.items())
            raise UserError(
                f"training stopped at step {step}, where {values}; {left}; "
                "try a lower optimizer.learning_rate, a longer warm-up or another seed"
            )

    def model(self) -> Model:
        """The model as it is now, with the moving average of the weights if one is kept."""
        variables = self.state.variables(self.experiment.optimizer.freeze)
        if self._model is None:
            data, program = self.experiment.data, self.program
            self._model = Model(self.experiment.model, program.module, variables, data.preprocessor(), program.mesh)
        return self._model.with_variables(variables)

    def evaluate(self) -> None:
        """Runs the evaluations and writes what they find."""
        self._read(0)
        self.watch.at("evaluate", self.done)
        try:
            figures = self._evaluated = evaluate(self.experiment, self.model())
        except Exception:
            self.save()  # what was learnt is worth more than what could not be measured
            raise
        if figures:
            self.figures |= figures
            self.metrics.write(self.done, figures)
            shown = "  ".join(f"{name.removeprefix('eval/')} {value:.4f}" for name, value in figures.items())
            self.terminal.say(f"step {self.done:>6}  loss {self.figures.get('train/loss', math.nan):.4f}  {shown}")
        self.terminal.pause()

    def due_checkpoint(self) -> bool:
        """Whether it is time to save; the last step is saved by `finish`, with what its evaluation finds."""
        return self.done % self.experiment.checkpoint.every == 0 and self.done < self.experiment.steps

    def save(self) -> None:
        """Saves, unless this very step is saved already. No checkpoint is ahead of the figures on disk."""
        self._read(0)
        if self.done > self.saved:
            self.watch.at("save", self.done)
            self.metrics.sync()
            self.checkpoints.save(self.state, self.next_example, self._evaluated)
            self.saved = self.done
        self.terminal.pause()

    def finish(self) -> None:
        """The last evaluation and the last checkpoint, unless the run was finished before."""
        if self.done > self.saved:
            if not self._evaluated:
                self.evaluate()
            self.save()

    def stopped(self, name: str) -> UserError:
        """Saves, and gives the error that ends a run which was asked to stop."""
        self.save()
        code = 128 + int(getattr(signal, name))
        return UserError(
            f"stopped by {name} after step {self.done}, which is saved; run the same command to go on", code
        )


def evaluate(experiment: Experiment, model: Model) -> dict[str, float]:
    """The figures of all evaluations of an experiment, named `eval/…`."""
    figures: dict[str, float] = {}
    for evaluation in experiment.evaluations:
        figures |= {f"eval/{name}": value for name, value in evaluation.run(model, experiment.data).items()}
    return figures


def means(figures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Figures as numbers; those that are means of nothing are left out."""
    one = {name: float(value) for name, value in figures.items() if value.ndim == 0}
    several = {name: value for name, value in figures.items() if value.ndim}
    return one | {name: float(total / count) for name, (total, count) in several.items() if count}


def ahead(program: Program, batches: Iterator[dict[str, np.ndarray]], next_example: int) -> Iterator[tuple[Batch, int]]:
    """Batches on the devices, `AHEAD` of them before they are asked for, each with the position behind it; the
    first begins at `next_example`."""

    def place() -> Iterator[tuple[Batch, int]]:
        behind, names = next_example, wanted(program)
        for batch in batches:
            # Rows of packed texts have numbers of their own.
            behind = int(batch.get(NEXT, behind + program.experiment.batch_size))
            yield program.place({name: batch[name] for name in names}), behind

    placed, queue = place(), deque[tuple[Batch, int]]()
    queue.extend(islice(placed, AHEAD))
    while queue:
        yield queue.popleft()
        queue.extend(islice(placed, 1))


def wanted(program: Program) -> list[str]:
    """Names of the fields that the model's loss reads, and of those which tell tasks or packed texts apart."""
    experiment = program.experiment
    packed = FIELDS if isinstance(experiment.data, Packed) else ()
    return [*experiment.model.batch_spec(1), *packed, *(["task"] if task_names(experiment.data) else [])]


def check_data(program: Program) -> None:
    """Raises UserError unless the dataset gives what the model reads, in the right shapes, shown by one example, and
    held-out examples if there is something to evaluate."""
    experiment = program.experiment
    if experiment.evaluations:
        held_out(experiment.data, FEW)
    with training_batches(experiment.data, 1, experiment.seed, threads=0) as batches:
        batch = next(batches)
    for name, spec in experiment.model.batch_spec(1).items():
        if name not in batch:
            raise UserError(f"the model reads {name}, which the data does not give (it gives {', '.join(batch)})")
        if batch[name].shape != spec.shape or batch[name].dtype != spec.dtype:
            raise UserError(
                f"the model reads {name} as {spec.dtype} {list(spec.shape[1:])}, "
                f"the data gives {batch[name].dtype} {list(batch[name].shape[1:])}"
            )
    if isinstance(experiment.data, Packed) and not inputs_of(program.module, batch).keys() >= {*FIELDS}:
        raise UserError("the data has several texts in a row, which a model must tell apart by segment and position")


def introduce(program: Program, workdir: Path, start: int, terminal: Terminal) -> None:
    """Says what runs where."""
    experiment, devices = program.experiment, program.mesh.devices.ravel()
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    mesh = " × ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    share = experiment.batch_size // jax.process_count()
    lines = {
        "experiment": f"{experiment.name}, seed {experiment.seed}",
        "devices": f"{devices.size} × {devices[0].device_kind}, {jax.process_count()} process(es)",
        "mesh": mesh,
        "batch": f"{experiment.batch_size} examples, {share} a process",
        "model": f"{parameters:,} parameters",
        "steps": f"{start} done, {experiment.steps} in all" if start else f"{experiment.steps}",
        "workdir": str(workdir),
    }
    for name, value in lines.items():
        terminal.say(f"{name:<11}{value}")


class Profiler:
    """Records ten steps as a trace that Perfetto and xprof open: those of `PROFILED` where it was asked for from the
    start, and the next ones whenever the process gets SIGUSR2."""

    def __init__(self, folder: Path, asked: bool):
        self._folder, self._begin, self._end = folder, PROFILED.start if asked else None, 0
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGUSR2, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._begin = 0  # the next step there is

    def before(self, index: int) -> None:
        """Starts or stops before the step of this index, counted from the start of the run."""
        if self._end and index >= self._end:
            self._stop()
        if self._begin is not None and index >= self._begin and not self._end:
            options = jax.profiler.ProfileOptions()
            # The hook on every Python call walks the stacks of threads that come and go, and the loop has several.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
            self._begin, self._end = None, index + len(PROFILED)

    def close(self) -> None:
        """Writes the trace, if one is being recorded, and gives the signal back."""
        self._stop()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR2, self._handler)

    def _stop(self) -> None:
        if self._end:
            jax.profiler.stop_trace()
            self._end = 0


class StopSignal:
    """Turns SIGTERM and SIGINT into a question that the loop asks after each step; a second SIGINT ends at once.

    With several processes SIGTERM goes through JAX's preemption service, so that all stop after the same step.
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def asked(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return bool(self.name)
