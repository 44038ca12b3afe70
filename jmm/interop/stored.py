"""Files of tensors: *.safetensors, whole or in shards with an index, read and written one tensor at a time.

The `safetensors` package maps whole files into memory on reading and gathers a whole file before writing; a checkpoint
larger than the host's memory needs neither. A file is eight bytes with the length of its header, a header in JSON that
gives type, shape and place of every tensor, and the tensors.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jmm.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""By the name that a header has for them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH = struct.Struct("<Q")
INDEX = ".index.json"
"""What the name of an index of shards ends with."""
MAX_HEADER = 100_000_000
"""Bytes of the longest header that is read: what is longer is no header."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, read when an array is made of it."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            flat = np.fromfile(self.file, np.uint8, prod(self.shape) * self.dtype.itemsize, offset=self.start)
            array = flat.view(self.dtype).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file} cannot be read any more ({error})") from error
        return array if dtype is None else array.astype(dtype, copy=False)


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one *.safetensors file, by name; reads the header alone.

    Raises:
      UserError: no such file, or not a whole one.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return dict(_entries(path, file.read(8), file, size))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        said = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is not a whole safetensors file ({said}); fetch it again") from error


def _entries(path: Path, length: bytes, file: Any, size: int) -> Iterator[tuple[str, Stored]]:
    if len(length) < 8:
        raise ValueError(f"it has {size} bytes")
    count = LENGTH.unpack(length)[0]
    if count > min(MAX_HEADER, size - 8):
        raise ValueError(f"its header would have {count} bytes, the file has {size}")
    header = json.loads(file.read(count).decode())
    end = 0
    for name, entry in sorted(_tensors(header), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{name} in {path} is of type {entry['dtype']}, which is not supported")
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        if first != end or min(shape, default=0) < 0 or last - first != prod(shape) * dtype.itemsize:
            raise ValueError(f"the place of {name} does not fit its shape and the tensor before it")
        end = last
        yield name, Stored(path, dtype, shape, 8 + count + first)
    if 8 + count + end != size:
        raise ValueError(f"it should have {8 + count + end} bytes and has {size}")


def _tensors(header: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def open_folder(folder: Path, stem: str = "model") -> dict[str, Stored]:
    """The tensors of stem.safetensors, or of the shards that stem.safetensors.index.json lists, by name.

    Raises:
      UserError: there are none, a file is missing or torn, or index and files disagree.
    """
    whole = folder / f"{stem}.safetensors"
    index = folder / (whole.name + INDEX)
    # As transformers: an index beside a whole file is left from earlier.
    if whole.exists() or not index.exists():
        return open_file(whole)
    listed = places(index)
    files = {name: open_file(folder / name) for name in sorted(set(listed.values()))}
    lost = [f"{tensor} is not in {file}" for tensor, file in listed.items() if tensor not in files[file]]
    lost += [
        f"{tensor} of {file} is not listed" for file, held in files.items() for tensor in held if tensor not in listed
    ]
    if lost:
        raise UserError(f"{index} and its files disagree: {'; '.join(sorted(lost))}")
    return {tensor: files[file][tensor] for tensor, file in listed.items()}


def places(index: Path) -> dict[str, str]:
    """The name of the file beside the index that holds each tensor.

    Raises:
      UserError: it is no index, or names a file elsewhere.
    """
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
            raise ValueError("its weight_map is no list of files by tensor")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of shards ({error}); fetch it again") from error
    for file in set(listed.values()):
        if Path(file).name != file:
            raise UserError(f"{index} names the file {file!r}, which does not lie beside it")
    return listed


def write_file(path: Path, tensors: Mapping[str, Any], dtypes: Mapping[str, np.dtype]) -> None:
    """Writes one *.safetensors file, a tensor at a time, each in its type of `dtypes`, else in its own."""
    types = {name: np.dtype(dtypes.get(name, each.dtype)) for name, each in tensors.items()}
    # The order in which the safetensors package writes: it keeps wide types aligned.
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + prod(tensors[name].shape) * types[name].itemsize
        shape = [int(size) for size in tensors[name].shape]
        header[name] = {"dtype": NAMES[types[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(LENGTH.pack(len(text)) + text)
        for name in names:
            array = _converted(name, tensors[name], types[name])
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _converted(name: str, tensor: Any, dtype: np.dtype) -> np.ndarray:
    """The tensor in a type; refuses values that the type has not."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(np.asarray(tensor, dtype))
    if dtype != tensor.dtype and not np.isfinite(array).all() and np.isfinite(np.asarray(tensor)).all():
        raise UserError(f"{name} holds values beyond those of {dtype}; write another type, such as bfloat16")
    return array


def write_folder(
    folder: Path, tensors: Mapping[str, Any], dtypes: Mapping[str, np.dtype], shard_bytes: int, stem: str = "model"
) -> None:
    """Writes stem.safetensors or, where that would be larger than `shard_bytes`, shards and their index."""
    sizes = {name: prod(each.shape) * np.dtype(dtypes.get(name, each.dtype)).itemsize for name, each in tensors.items()}
    shards = plan_shards(sizes, shard_bytes)
    if len(shards) == 1:
        write_file(folder / f"{stem}.safetensors", tensors, dtypes)
        return
    held: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in names}, dtypes)
        held |= dict.fromkeys(names, file)
    count = sum(prod(each.shape) for each in tensors.values())
    index = {
        "metadata": {"total_parameters": count, "total_size": sum(sizes.values())},
        "weight_map": dict(sorted(held.items())),
    }
    path = folder / f"{stem}.safetensors{INDEX}"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The tensors of each shard: filled in order, none larger than `limit` but by a single tensor."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards
