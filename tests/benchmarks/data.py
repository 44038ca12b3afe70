"""How fast, how exactly and in how much memory the user's own data are read.

python -m tests.benchmarks.data --json figures.json

JPEGs of 500×375 pixels are made here; what is compared takes turns, on two processes or threads each.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.images import decode_image
from data_pipelines.order import ordered
from data_pipelines.own import OwnData
from data_pipelines.pipeline import training_batches
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.web_dataset import WebDataset
from tests.benchmarks.report import Row, run

MIB = 1 << 20
SIDE, BATCH, WORKERS = 224, 64, 2
JPEGS, SHARDS = 1024, 8

KINDS = {"light": (1.2, 88), "photographs": (0.6, 93)}
"""Radius that grain is blurred by, and quality. Files of this many pixels have some 110 kB in ImageNet and 140 in
Flickr30k; those pressed hard for the web have a third of that."""


def photograph(seed: int, radius: float = KINDS["light"][0], quality: int = KINDS["light"][1]) -> bytes:
    """A JPEG of 500×375 with about the detail of a photograph's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 256, (375, 500, 3), np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    file = io.BytesIO()
    Image.blend(coarse, grain, 0.35).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_tars(folder: Path, images: Callable[[int], bytes], count: int, shards: int, ending: str) -> None:
    """Records 0, 1, … of an image and its number."""
    share = count // shards
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for i in range(shard * share, (shard + 1) * share):
                for suffix, data in ((ending, images(i)), ("txt", str(i).encode()), ("cls", str(i).encode())):
                    about = tarfile.TarInfo(f"{i:08d}.{suffix}")
                    about.size = len(data)
                    archive.addfile(about, io.BytesIO(data))


def rate(batches: Iterator[object], rounds: int) -> float:
    """Examples a second, after the first batches."""
    for _ in range(4):
        next(batches)
    start = time.perf_counter()
    for _ in range(rounds):
        next(batches)
    return rounds * BATCH / (time.perf_counter() - start)


def alone(work: Callable[[bytes], object], images: list[bytes]) -> float:
    """Images a second of one thread."""
    start = time.perf_counter()
    for data in images:
        work(data)
    return len(images) / (time.perf_counter() - start)


@contextmanager
def ours(folder: Path) -> Iterator[Iterator[object]]:
    """Threads of one process."""
    with training_batches(whole(folder), BATCH, 0, threads=WORKERS) as batches:
        yield batches


@contextmanager
def our_workers(folder: Path) -> Iterator[Iterator[object]]:
    """Processes that write into one process's batches."""
    with training_batches(whole(folder), BATCH, 0, threads=0, workers=WORKERS) as batches:
        yield batches


def whole(folder: Path) -> OwnData:
    """All of the pictures."""
    return OwnData(WebDataset(str(folder)), hold_out=10**9, preprocess=Preprocess((SIDE, SIDE)))


def for_torch(image: Image.Image) -> object:
    """RandomResizedCrop, ToTensor and Normalize as torchvision does them, of a Pillow image."""
    import torch

    from data_pipelines.augmentations import random_box

    rng = np.random.default_rng()
    width, height = image.size
    top, left, rows, columns = random_box((height, width), rng, (0.9, 1.0), (3 / 4, 4 / 3))
    box = (left, top, left + columns, top + rows)
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().float().div(255)
    return (pixels - 0.5) / 0.5


class TorchFolder:
    """A map-style dataset of files."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        with Image.open(self.paths[index]) as image:
            return for_torch(image), index


@contextmanager
def torch_loader(folder: Path) -> Iterator[Iterator[object]]:
    """DataLoader with worker processes."""
    from torch.utils.data import DataLoader

    loader = DataLoader(TorchFolder(folder), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    with closing(batch for _ in iter(int, 1) for batch in loader) as batches:
        yield batches


@contextmanager
def web_dataset(folder: Path) -> Iterator[Iterator[object]]:
    """The `webdataset` package in a DataLoader."""
    import webdataset
    from torch.utils.data import DataLoader

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    records = webdataset.WebDataset(shards, shardshuffle=len(shards), resampled=False).shuffle(200)
    pairs = records.decode("pil").to_tuple("jpg", "cls").map_tuple(for_torch, int).batched(BATCH, partial=False)
    loader = DataLoader(pairs, None, num_workers=WORKERS)
    with closing(batch for _ in iter(int, 1) for batch in loader) as batches:
        yield batches


def speed() -> list[Row]:
    """JPEGs to float batches."""
    return [row for kind in KINDS for row in speed_of(kind)]


def speed_of(kind: str) -> list[Row]:
    """Of one kind of files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [photograph(seed, *KINDS[kind]) for seed in range(JPEGS)]
        write_tars(folder, images.__getitem__, JPEGS, SHARDS, "jpg")
        for i, data in enumerate(images):
            (folder / f"{i:05d}.jpg").write_bytes(data)
        found: dict[str, list[float]] = {}
        decoded, resized = [], []
        own = OwnData(WebDataset(name), preprocess=Preprocess((SIDE, SIDE)))
        rng = np.random.default_rng(0)
        for _ in range(3):
            decoded.append(alone(decode_image, images))
            resized.append(alone(lambda data: own.augment({"image": decode_image(data)}, rng), images))
            for loader in (ours, our_workers, torch_loader, web_dataset):
                with loader(folder) as batches:
                    found.setdefault(loader.__name__, []).append(rate(batches, 16))
    decoder, small = median(decoded), median(resized)
    mine, apart, torch_, web = (median(each) for each in found.values())
    size = sum(map(len, images)) / JPEGS / 1000
    share, work = mine / (decoder * WORKERS), mine / (small * WORKERS)
    return [
        Row(f"{kind}, JPEGs of {size:.0f} kB: decoded, one thread", decoder, "images/s", "", True),
        Row(f"… decoded, cut and resized to {SIDE} px, one thread", small, "images/s", "", True),
        Row(f"… as {SIDE} px float batches, {WORKERS} threads", mine, "images/s", "", True),
        Row(f"… of the decoder's rate times {WORKERS}", share, "", "≥ 0.9", share >= 0.9),
        Row(f"… of the rate of decoding, cutting and resizing times {WORKERS}", work, "", "", True),
        Row(f"… as batches by {WORKERS} workers, against the threads", apart / mine, "times as fast", "", True),
        Row("… against torch DataLoader with Pillow", mine / torch_, "times as fast", "≥ 1.5", mine / torch_ >= 1.5),
        Row("… against webdataset", mine / web, "times as fast", "≥ 1.5", mine / web >= 1.5),
    ]


@dataclass(frozen=True)
class Numbered:
    """Examples that are their own numbers."""

    count: int

    def source(self, split: str) -> "Numbered":
        return self

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"label": index}

    def augment(self, example: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
        return example

    def preprocessor(self) -> Preprocess:
        return Preprocess()


def labels(
    data: Numbered, batch: int, start: int, steps: int, processes: int, threads: int, workers: int
) -> np.ndarray:
    """The global order as so many processes read it."""
    shares = []
    for process in range(processes):
        where = {"process": process, "processes": processes, "threads": threads, "workers": workers}
        with training_batches(data, batch, 3, next_example=start, **where) as batches:
            shares.append([next(batches)["label"] for _ in range(steps)])
    return np.concatenate([share[step] for step in range(steps) for share in shares])


def resume() -> list[Row]:
    """Random positions, other numbers of processes, workers and threads."""
    data, batch, rng = Numbered(5003), 40, np.random.default_rng(0)
    uninterrupted = labels(data, batch, 0, 400, 1, 2, 0)
    equal = 0
    for _ in range(20):
        start = batch * int(rng.integers(0, 370))
        processes, threads, workers = int(rng.choice([1, 2, 4, 8])), int(rng.integers(0, 4)), int(rng.integers(0, 3))
        next_ones = labels(data, batch, start, 25, processes, threads, workers)
        equal += np.array_equal(next_ones, uninterrupted[start : start + 1000])
    return [Row("resumed at random, the next 1,000 examples are the same", equal, "of 20", "= 20", equal == 20)]


def resident() -> float:
    """Bytes of this process in memory."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory() -> list[Row]:
    """200,000 examples from 1,000 shards."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    with tempfile.TemporaryDirectory() as name:
        write_tars(Path(name), lambda _: file.getvalue(), 200_000, 1000, "png")
        data = OwnData(WebDataset(name), hold_out=10**9, preprocess=Preprocess((8, 8), text_length=8))
        with training_batches(data, 500, 0, threads=2) as batches:
            for _ in range(40):
                next(batches)
            before = resident()
            most = before
            for _ in range(360):
                next(batches)
                most = max(most, resident())
    growth = (most - before) / MIB
    return [
        Row("memory over 200,000 examples of 1,000 shards, growth after 20,000", growth, "MiB", "≤ 50", growth <= 50)
    ]


def pod() -> list[Row]:
    """256 processes and a billion records."""
    processes, count, share = 256, 1_000_000_000, 64
    figures = []
    for process in (0, 100, 255):
        command = [sys.executable, "-m", "tests.benchmarks.data", "share", str(process)]
        figures.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    batches = ordered(Numbered(count), 0).batch(share)
    read = np.concatenate([batches[step * processes + p]["label"] for step in range(2) for p in range(processes)])
    distinct = len(np.unique(read)) / len(read)
    # Of an index that can be counted, the same code gives each record once.
    small = Numbered(processes * share * 3)
    epoch = np.sort(labels(small, processes * share, 0, 3, processes, 0, 0))
    complete = np.array_equal(epoch, np.arange(small.count))
    slowest, largest = (max(each[name] for each in figures) for name in ("seconds", "bytes"))
    return [
        Row("256 processes, 1e9 records: different among the first 32,768", distinct, "", "= 1", distinct == 1),
        Row("256 processes: an epoch has every record once", float(complete), "", "= 1", complete),
        Row("a process's share opened and its first batch read", slowest, "s", "≤ 2", slowest <= 2),
        Row("memory of the process", largest / MIB, "MiB", "≤ 200", largest <= 200 * MIB),
    ]


def share(process: int) -> None:
    """What one process of a pod needs to open its share."""
    start = time.perf_counter()
    with training_batches(Numbered(1_000_000_000), 256 * 64, 0, process=process, processes=256, threads=2) as batches:
        next(batches)
        print(json.dumps({"seconds": time.perf_counter() - start, "bytes": resident()}))


MEASUREMENTS = {"speed": speed, "resume": resume, "memory": memory, "pod": pod}

if __name__ == "__main__":
    if sys.argv[1:2] == ["share"]:
        share(int(sys.argv[2]))
    else:
        sys.exit(run(MEASUREMENTS, __doc__ or ""))
