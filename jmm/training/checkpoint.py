"""Checkpoints: Orbax, asynchronous, atomic, and guarded against silent corruption.

A checkpoint holds the items `params`, `collections` and `average` (what a model is, where it has them) and
`training` (optimizer, step, key), and `position`, the global index of the next example. Orbax notices a missing
or torn file but restores a flipped bit as a wrong number, so a manifest with a CRC of every file is written beside
the items as soon as they are complete, and checked before they are read.
"""

import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jmm.distributed.processes import is_first
from jmm.errors import UserError
from jmm.experiment import Checkpoint
from jmm.training.state import TrainState

# Orbax warns of its own internals, and its tasks print each error that they also raise; what a user must know is
# raised or said by us.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

MANIFEST = "manifest.json"
CHUNK = 1 << 20


def hush_late_writes() -> None:
    """Lets a process whose checkpoint failed end with the sentence that says so.

    Writes that are still under way then find Orbax's event loop closed, and each would print a traceback of that.
    """
    before = sys.unraisablehook

    def hook(event: Any) -> None:
        if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
            before(event)

    sys.unraisablehook = hook


class Checkpoints:
    """The checkpoints of one workdir, written while training."""

    def __init__(self, folder: Path, config: Checkpoint):
        self.folder = folder.absolute()
        self.config = config
        keep: list[Any] = [policies.LatestN(config.keep)]
        if config.best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["best"], n=1, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._pending: list[int] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._manifests: list[Future[None]] = []

    def save(self, state: TrainState, next_example: int, metrics: dict[str, float]) -> None:
        """Starts to save; returns as soon as the arrays are copied off the devices.

        Raises:
          UserError: this checkpoint or the one before it could not be written.
        """
        step = int(state.step)
        position = {"next_example": next_example, "grain": grain.__version__}
        best = metrics.get(self.config.best) if self.config.best else None
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._pending.append(step)
        self._guard(
            step,
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(position=ocp.args.JsonSave(position), **items),
                metrics=None if best is None else {"best": best},
                force=True,
            ),
        )

    def poll(self) -> None:
        """Looks, without waiting, whether a checkpoint is complete, and has its manifest written.

        Raises:
          UserError: a checkpoint could not be written.
        """
        if self._pending and not self._manager.is_saving_in_progress():
            self._guard(self._pending[-1], self._manager.check_for_errors)
            if is_first():
                for step in self._pending:
                    self._manifests.append(self._worker.submit(write_manifest, self.folder / str(step)))
            self._pending.clear()

    def close(self) -> None:
        """Waits for everything under way.

        Raises:
          UserError: a checkpoint could not be written.
        """
        try:
            if self._pending:
                self._guard(self._pending[-1], self._manager.wait_until_finished)
            self.poll()
            for manifest in self._manifests:
                manifest.result()
        finally:
            self._worker.shutdown()
            # Each thread of a failed save has its own error, and the last to end would be raised here in place of
            # the sentence above.
            with suppress(Exception):
                self._manager.close()

    def restore(
        self, state: TrainState, shardings: TrainState, say: Callable[[str], None]
    ) -> tuple[TrainState, int] | None:
        """The newest checkpoint that is whole, on any mesh, and its position; None if there is none at all.

        A damaged one is moved to `damaged/` beside the checkpoints once an older one has been read.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            shardings,
        )
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                check_manifest(self.folder / str(step))
                found = restore_items(self._manager, step, _items(abstract))
                position = self._manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))
            except Exception as error:  # Orbax raises many kinds for damaged files
                damaged[step] = reason(error)
                continue
            for bad, why in damaged.items():
                say(f"the checkpoint of step {bad} is damaged ({why}): going on from step {step}")
                self._set_aside(bad)
            return _rebuilt(abstract, found), position["position"]["next_example"]
        if damaged:
            newest = max(damaged)
            raise UserError(f"no checkpoint in {self.folder} can be read; step {newest}: {damaged[newest]}")
        return None

    def last(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def _set_aside(self, step: int) -> None:
        if is_first():
            aside = self.folder.parent / "damaged"
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        self._manager.reload()

    def _guard(self, step: int, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # a full disk comes as many kinds
            good = [each for each in self._manager.all_steps(read=True) if each != step]
            left = f"step {max(good)} is the last good one" if good else "there is no earlier one"
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.folder}: {reason(error)}; {left}"
            ) from error


def restore_items(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """The named items of a checkpoint, each array placed as its abstract twin says."""
    args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    return dict(manager.restore(step, args=ocp.args.Composite(**args)).items())


def _items(state: TrainState) -> dict[str, Any]:
    training = {"step": state.step, "key": state.key, "optimizer": state.opt_state}
    items = {"params": state.params, "training": training}
    if state.collections:
        items["collections"] = state.collections
    if state.average is not None:
        items["average"] = state.average
    return items


def _rebuilt(abstract: TrainState, items: dict[str, Any]) -> TrainState:
    training = items["training"]
    return TrainState(
        step=training["step"],
        params=items["params"],
        collections=items.get("collections", abstract.collections),
        opt_state=training["optimizer"],
        average=items.get("average"),
        key=training["key"],
    )


def write_manifest(folder: Path) -> None:
    """Writes the CRC and size of every file of a complete checkpoint, atomically."""
    try:
        files = {str(p.relative_to(folder)): list(_crc(p)) for p in sorted(folder.rglob("*")) if p.is_file()}
        beside = folder / (MANIFEST + ".tmp")
        beside.write_text(json.dumps(files))
        beside.rename(folder / MANIFEST)
    except FileNotFoundError:
        if folder.exists():  # else it was deleted meanwhile to keep only the newest
            raise


def check_manifest(folder: Path) -> None:
    """Raises ValueError naming the first file that is not as it was written.

    A checkpoint without a manifest (the process died between the two) passes: it was completed atomically.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return
    for name, expected in json.loads(manifest.read_text()).items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{name} is missing")
        if list(_crc(path)) != expected:
            raise ValueError(f"{name} is not as it was written")


def _crc(path: Path) -> tuple[int, int]:
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return crc, size


def reason(error: BaseException) -> str:
    """What the operating system says, if it is behind the error; else the error's first line."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
