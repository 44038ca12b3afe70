"""Records of any layout into ArrayRecord shards: in parallel, in pieces that a second run need not make again, and
verified."""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from data_pipelines import files
from data_pipelines.broken import Broken
from data_pipelines.sources.array_record import pack
from data_pipelines.sources.extra import needed
from data_pipelines.sources.layouts import records
from jmm.errors import UserError

MANIFEST = "shards.json"
"""What is converted to how many shards."""
STATE = "state"
"""In the manifest: of the source's files, see `files.state`."""
FINISHED = "finished"
"""The folder of what each finished shard holds, written once its shard is in its place: by then any process, on any
machine, may take the shard for made."""
OPTIONS = "group_size:1"
"""One record a group: only so is any of them read without the others."""


@dataclass(frozen=True)
class Shard:
    """What a finished shard holds."""

    name: str
    records: int
    """How many."""
    left_out: int
    """Those that cannot be read, or that have no place in a file, which were not written."""
    checksum: int
    """CRC-32 over all records in their order."""
    broken: str = ""
    """What is wrong with the first of those left out."""


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    shards: tuple[Shard, ...]
    made: int
    """Shards that this run wrote; the others were there."""


def convert(
    source: str,
    target: str,
    shards: int,
    *,
    split: str = "train",
    workers: int | None = None,
    beam: str | None = None,
    say: Callable[[str], None],
) -> Converted:
    """Writes all records of `source` into `shards` files of nearly equal length below `target`, and reads them again. A
    run that was broken off goes on with the shards that are missing.

    Args:
      source: in any layout, see `sources.layouts`.
      target: a new folder, or one that was broken off; gs:// and the like through fsspec.
      shards: number of files.
      split: of a dataset that has several.
      workers: processes of this machine; None: one a processor.
      beam: the flags of an Apache Beam pipeline that does it instead; an empty text runs it here.
      say: is told of each shard.

    Raises:
      UserError: no source, a target that holds another conversion, shards that do not verify, no space, no record that
        can be read.
    """
    count = len(records(source, split).open())
    if not 1 <= shards <= max(count, 1):
        raise UserError(f"--shards lies between 1 and the {count} records, not {shards}")
    plan = {"source": source, "split": split, "records": count, "shards": shards, STATE: files.state(source, target)}
    done = _begin(target, plan)
    todo = [number for number in range(shards) if f"{number:05d}" not in done]
    work = partial(write_shard, source, split, target, shards)
    try:
        for shard in _in_processes(work, todo, workers) if beam is None else _on_beam(work, todo, beam, target):
            why = f", {shard.left_out} left out that cannot be converted, the first: {shard.broken}"
            say(f"{shard.name}: {shard.records} records{why if shard.left_out else ''}")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); the same command goes on") from error
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the conversion was ended, perhaps for want of memory, of which fewer --workers take less; "
            "the same command goes on"
        ) from error
    done = _finished(target)
    if done and count and not any(shard.records for shard in done.values()):
        first = next((shard.broken for shard in done.values() if shard.broken), "")
        raise UserError(f"none of the {count} records of {source} can be converted; the first: {first}")
    return Converted(tuple(done[name] for name in sorted(done)), len(todo))


def _in_processes(work: Callable[[int], Shard], numbers: list[int], workers: int | None) -> Iterator[Shard]:
    """As each is finished."""
    workers = workers or os.cpu_count() or 1
    # Spawned: a fork copies locks that threads of the readers may hold.
    with ProcessPoolExecutor(min(workers, max(len(numbers), 1)), mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(work, number) for number in numbers]):
            yield job.result()


def _on_beam(work: Callable[[int], Shard], numbers: list[int], flags: str, target: str) -> Iterable[Shard]:
    """All of them, once the pipeline has ended."""
    from data_pipelines.on_beam import each

    if numbers:
        each(work, numbers, flags)
    done = _finished(target)
    if missing := [number for number in numbers if f"{number:05d}" not in done]:
        # Of a runner that does not wait for its end.
        raise UserError(f"{len(missing)} of {len(numbers)} shards are not finished yet; the same command goes on")
    return [done[f"{number:05d}"] for number in numbers]


def write_shard(source: str, split: str, target: str, shards: int, number: int) -> Shard:
    """One shard: written beside its place, read again, and put there."""
    module = needed("array_record.python.array_record_module", "data", target)
    raw = records(source, split).open()
    name = f"data-{number:05d}-of-{shards:05d}.array_record"
    count, left_out, checksum, broken = 0, 0, 0, ""
    with _workplace(target) as folder:
        beside = folder / f"{name}{files.PART}"
        try:
            with closing(module.ArrayRecordWriter(str(beside), OPTIONS)) as writer:
                for index in range(*share(len(raw), number, shards)):
                    try:
                        data = pack(raw[index])
                    except Broken as error:
                        left_out, broken = left_out + 1, broken or f"{raw.where(index)}: {error}"
                        continue
                    writer.write(data)
                    checksum, count = zlib.crc32(data, checksum), count + 1
        except RuntimeError as error:
            raise UserError(f"{beside} cannot be written ({error}); the same command goes on") from error
        shard = Shard(name, count, left_out, checksum, broken)
        verify(beside, shard)
        files.move(beside, files.join(target, name))
    files.write(files.join(target, FINISHED, f"{number:05d}.json"), json.dumps(vars(shard)).encode())
    return shard


@contextmanager
def _workplace(target: str) -> Iterator[Path]:
    """A folder of this machine: the target itself, where it is one."""
    if files.is_remote(target):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield Path(target)


def share(total: int, number: int, shards: int) -> tuple[int, int]:
    """Where a shard's records begin and end: consecutive ones, lengths that differ by one at most."""
    return total * number // shards, total * (number + 1) // shards


def verify(path: Path, shard: Shard) -> None:
    """Raises UserError unless the file holds what was written."""
    module = needed("array_record.python.array_record_data_source", "data", str(path))
    found, checksum = 0, 0
    if shard.records:
        with module.ArrayRecordDataSource([str(path)]) as written:
            found = len(written)
            for index in range(found):
                checksum = zlib.crc32(written[index], checksum)
    if (found, checksum) != (shard.records, shard.checksum):
        raise UserError(
            f"{path} does not hold what was written: {found} records of {shard.records}, or another checksum"
        )


def _begin(target: str, plan: Mapping[str, object]) -> dict[str, Shard]:
    """The shards that an earlier run of the same conversion has finished."""
    manifest = files.join(target, MANIFEST)
    there = files.listing(target)
    if MANIFEST not in there:
        if there:
            raise UserError(f"{target} is not empty, and holds no conversion to go on with; name another folder")
        files.write(manifest, json.dumps(plan).encode())
        return {}
    kept = _read(manifest)
    if kept != plan and STATE in kept and {**kept, STATE: plan[STATE]} == plan:
        raise UserError(f"{target} was begun before the files of {plan['source']} were changed; name another folder")
    if kept != plan:
        other = ", ".join(f"{name} {value}" for name, value in kept.items())
        raise UserError(f"{target} holds another conversion ({other}); name another folder")
    finished = {name: shard for name, shard in _finished(target).items() if shard.name in there}
    if files.is_remote(target):
        return finished
    return {name: shard for name, shard in finished.items() if not _wrong(Path(target), shard)}


def _finished(target: str) -> dict[str, Shard]:
    """By its number."""
    folder = files.join(target, FINISHED)
    shards = {}
    for name in files.listing(folder):
        path = files.join(folder, name)
        try:
            shards[name.removesuffix(".json")] = Shard(**_read(path))
        except TypeError as error:
            raise UserError(f"{path} cannot be read ({error}); take it away, and the shard is made again") from error
    return shards


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read(path, 0, files.size(path)))
        if not isinstance(found, dict):
            raise ValueError("it is no map")
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); name another folder") from error
    return found


def checked(path: Path) -> list[str]:
    """What is wrong with the shards of a converted folder; empty: nothing."""
    found = (_wrong(path, shard) for _, shard in sorted(_finished(str(path)).items()))
    return [sentence for sentence in found if sentence]


def _wrong(path: Path, shard: Shard) -> str:
    try:
        verify(path / shard.name, shard)
    except (UserError, RuntimeError, ValueError) as error:
        return f"{shard.name}: {error}"
    return ""
