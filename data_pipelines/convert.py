"""Records of any layout into ArrayRecord shards: in parallel, in pieces that a second run need not make again, and
verified."""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from data_pipelines.broken import Broken
from data_pipelines.sources.array_record import pack
from data_pipelines.sources.extra import needed
from data_pipelines.sources.layouts import records
from jmm.errors import UserError

MANIFEST = "shards.json"
OPTIONS = "group_size:1"
"""One record a group: only so is any of them read without the others."""


@dataclass(frozen=True)
class Shard:
    """What a finished shard holds."""

    name: str
    records: int
    """How many."""
    left_out: int
    """Broken ones, which were not written."""
    checksum: int
    """CRC-32 over all records in their order."""


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    shards: tuple[Shard, ...]
    made: int
    """Shards that this run wrote; the others were there."""


def convert(
    source: str,
    target: Path,
    shards: int,
    *,
    split: str = "train",
    workers: int | None = None,
    say: Callable[[str], None],
) -> Converted:
    """Writes all records of `source` into `shards` files of nearly equal length below `target`, and reads them again. A
    run that was broken off goes on with the shards that are missing.

    Raises:
      UserError: no source, a target that holds another conversion, shards that do not verify, no space.
    """
    raw = records(source, split).open()
    if not 1 <= shards <= max(len(raw), 1):
        raise UserError(f"--shards lies between 1 and the {len(raw)} records, not {shards}")
    plan = {"source": source, "split": split, "records": len(raw), "shards": shards}
    done = _begin(target, plan)
    todo = [number for number in range(shards) if f"{number:05d}" not in done]
    workers = workers or os.cpu_count() or 1
    try:
        # Spawned: a fork copies locks that threads of the readers may hold.
        with ProcessPoolExecutor(min(workers, max(len(todo), 1)), mp_context=get_context("spawn")) as pool:
            jobs = {pool.submit(write_shard, source, split, target, number, shards): number for number in todo}
            for job in as_completed(jobs):
                shard = job.result()
                done[f"{jobs[job]:05d}"] = shard
                _save(target, plan, done)
                say(f"{shard.name}: {shard.records} records, {shard.left_out} broken ones left out")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); the same command goes on") from error
    return Converted(tuple(done[name] for name in sorted(done)), len(todo))


def write_shard(source: str, split: str, target: Path, number: int, shards: int) -> Shard:
    """One shard: written beside its place, read again, and put there."""
    module = needed("array_record.python.array_record_module", "data", str(target))
    raw = records(source, split).open()
    name = f"data-{number:05d}-of-{shards:05d}.array_record"
    beside = target / f"{name}.part"
    count, left_out, checksum = 0, 0, 0
    writer = module.ArrayRecordWriter(str(beside), OPTIONS)
    try:
        for index in range(*share(len(raw), number, shards)):
            try:
                data = pack(raw[index])
            except (Broken, TypeError):
                left_out += 1
                continue
            writer.write(data)
            checksum, count = zlib.crc32(data, checksum), count + 1
    finally:
        writer.close()
    shard = Shard(name, count, left_out, checksum)
    verify(beside, shard)
    beside.replace(target / name)
    return shard


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


def _begin(target: Path, plan: Mapping[str, object]) -> dict[str, Shard]:
    """The shards that an earlier run of the same conversion has finished."""
    manifest = target / MANIFEST
    if not manifest.exists():
        if target.exists() and any(target.iterdir()):
            raise UserError(f"{target} is not empty, and holds no conversion to go on with; name another folder")
        target.mkdir(parents=True, exist_ok=True)
        _save(target, plan, {})
        return {}
    try:
        kept = json.loads(manifest.read_text())
        shards = {name: Shard(**shard) for name, shard in kept["done"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest} cannot be read ({error}); name another folder") from error
    if kept["plan"] != plan:
        other = ", ".join(f"{name} {value}" for name, value in kept["plan"].items())
        raise UserError(f"{target} holds another conversion ({other}); name another folder")
    return {name: shard for name, shard in shards.items() if (target / shard.name).is_file()}


def _save(target: Path, plan: Mapping[str, object], done: dict[str, Shard]) -> None:
    beside = target / f"{MANIFEST}.part"
    beside.write_text(json.dumps({"plan": plan, "done": {name: vars(shard) for name, shard in sorted(done.items())}}))
    beside.replace(target / MANIFEST)


def checked(path: Path) -> list[str]:
    """What is wrong with the shards of a converted folder; empty: nothing."""
    kept = json.loads((path / MANIFEST).read_text())
    wrong = []
    for shard in (Shard(**each) for each in kept["done"].values()):
        try:
            verify(path / shard.name, shard)
        except (UserError, RuntimeError, ValueError) as error:
            wrong.append(f"{shard.name}: {error}")
    return wrong
