"""Files on disk, and in buckets: a path such as gs://bucket/folder/file is read through fsspec, any other from disk."""

import os
import re
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.broken import Broken
from jmm.errors import UserError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""The numbers of shards as WebDataset writes them: {000..127}."""

INDEX = ".index.npy"
"""How the name of a file ends that is kept beside a shard, and no part of the data."""

PART = ".part"
"""How the name of a file ends that is still written."""


def is_remote(path: str) -> bool:
    """Whether a path names a file system other than that of this machine."""
    return "://" in path


def exists(path: str) -> bool:
    """Whether a path of this machine is there; one that is none, as a long list of such, is not."""
    try:
        return not is_remote(path) and Path(path).exists()
    except (OSError, ValueError):
        return False


def filesystem(path: str) -> Any:
    """The fsspec file system of a remote path.

    Raises:
      UserError: fsspec, or what it needs for this kind of path, is not installed.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(path)[0]
    except ImportError as error:
        kind = path.split("://", 1)[0]
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(kind, "fsspec")
        raise UserError(f"{path} is read through fsspec: pip install fsspec {package} ({error})") from error
    except ValueError as error:
        raise UserError(f"{path} is no path that fsspec knows ({error})") from error


def shards(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a pattern, sorted: one file, a folder of files with these suffixes, a list of such separated by
    commas, or names with *, ? or {000..127}.

    Raises:
      UserError: there is none, or one that a range names is missing.
    """
    patterns = [pattern] if exists(pattern) else pattern.split(",")
    found = [path for each in patterns for path in _expanded(each.strip(), suffixes)]
    if not found:
        raise UserError(f"{pattern} names no file that ends with {' or '.join(suffixes)}")
    return found


def _expanded(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    if match := RANGE.search(pattern):
        first, last = match.groups()
        names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [
            path
            for name in names
            for path in _expanded(f"{pattern[: match.start()]}{name}{pattern[match.end() :]}", suffixes)
        ]
    if is_remote(pattern):
        return _remote(pattern, suffixes)
    path = Path(pattern)
    if path.is_dir():
        return sorted(str(each) for each in path.iterdir() if each.is_file() and str(each).endswith(suffixes))
    if path.is_file():
        return [pattern]
    if any(sign in path.name for sign in "*?"):
        return sorted(str(each) for each in path.parent.glob(path.name) if each.is_file() and INDEX not in each.name)
    raise UserError(f"there is no {pattern}")


def _remote(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    files = filesystem(pattern)
    if files.isdir(pattern):
        found = [path for path in files.ls(pattern, detail=False) if path.endswith(suffixes)]
    else:
        found = [path for path in files.glob(pattern) if INDEX not in path]
    if not found:
        raise UserError(f"there is no {pattern}")
    return sorted(files.unstrip_protocol(path) for path in found)


def state(pattern: str, without: str) -> str:
    """A checksum of the names, sizes and, on disk, times of all files of a pattern and below its folders, but for those
    below `without`: the same as long as nothing is changed.

    Raises:
      UserError: as `shards`.
    """
    found: list[tuple[str, int, int]] = []
    excluded = Path(without).resolve()
    for path in [pattern] if exists(pattern) else shards(pattern, ("",)):
        if is_remote(path):
            found += [(name, about["size"], 0) for name, about in filesystem(path).find(path, detail=True).items()]
        else:
            whole = Path(path).resolve()
            below = whole.rglob("*") if whole.is_dir() else [whole]
            source = (each for each in below if not each.is_relative_to(excluded))
            about = ((each, each.stat()) for each in source if each.is_file())
            found += [(str(each), stat.st_size, stat.st_mtime_ns) for each, stat in about]
    return f"{zlib.crc32(repr(sorted(each for each in found if INDEX not in each[0])).encode(errors='replace')):08x}"


def size(path: str) -> int:
    """Bytes."""
    return int(filesystem(path).size(path)) if is_remote(path) else Path(path).stat().st_size


def read(path: str, start: int, length: int) -> bytes:
    """A part of a file. It is opened for this alone: thousands of shards are more than may be open at once.

    Raises:
      UserError: it cannot be read.
    """
    try:
        if is_remote(path):
            return bytes(filesystem(path).cat_file(path, start=start, end=start + length))
        file = os.open(path, os.O_RDONLY)
        try:
            return os.pread(file, length, start)
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def below(folder: str, name: str) -> str:
    """The path of a file that a list in a folder names.

    Raises:
      Broken: it leads out of the folder, or is none that a file can have.
    """
    try:
        if is_remote(folder):
            outside = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        else:
            outside = not (Path(folder) / name).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError) as error:
        raise Broken("name", f"{name[:100]!r} is no name of a file ({error})") from error
    if outside:
        raise Broken("name", f"{name} lies outside {folder}")
    return join(folder, name)


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    try:
        return bool(filesystem(path).isfile(path)) if is_remote(path) else Path(path).is_file()
    except OSError:  # a name that is too long
        return False


def read_below(folder: str, name: str) -> bytes:
    """A whole file that a list in a folder names.

    Raises:
      Broken: it is not there, or its name leads out of the folder.
    """
    path = below(folder, name)
    try:
        return bytes(filesystem(path).cat_file(path)) if is_remote(path) else Path(path).read_bytes()
    except OSError as error:
        raise Broken("field", f"there is no {name} that can be read ({error.strerror or error})") from error


def content(path: Path) -> bytes:
    """A whole file that was found in a folder.

    Raises:
      Broken: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Broken("field", f"it cannot be read ({error.strerror or error})") from error


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return "/".join([folder.rstrip("/"), *names])


def listing(folder: str) -> set[str]:
    """The names in a folder; none where there is no folder, or not yet.

    Raises:
      UserError: it is a file, or cannot be read.
    """
    try:
        if is_remote(folder):
            store = filesystem(folder)
            found = store.ls(folder, detail=False) if store.isdir(folder) else []
            return {path.rstrip("/").rsplit("/", 1)[-1] for path in found}
        return {path.name for path in Path(folder).iterdir() if not path.name.endswith(PART)}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UserError(f"{folder} is no folder that can be read ({error.strerror or error})") from error


def write(path: str, data: bytes) -> None:
    """A small file, whole or not at all; folders above it are made."""
    if is_remote(path):
        store = filesystem(path)
        store.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        store.pipe_file(path, data)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        beside = Path(path + PART)
        beside.write_bytes(data)
        beside.replace(path)


def move(local: Path, path: str) -> None:
    """A finished file of this machine, put in its place, whole or not at all."""
    if is_remote(path):
        filesystem(path).put_file(str(local), path)
        local.unlink()
    else:
        local.replace(path)
