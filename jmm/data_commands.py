"""`jmm data`: converting, looking at and timing the user's own data, and a tokenizer for it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jmm.commands import Result, positive
from jmm.errors import UserError

SOURCE = (
    "a folder with captions.csv or captions.jsonl, *.tar (WebDataset), *.parquet, *.array_record, a prepared TFDS "
    "dataset, one that Hugging Face's datasets has saved, or a folder of pages, sounds or frames"
)


def add_data_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Their options; `command` makes the parser of one."""
    sub = command("convert", convert, "Write ArrayRecord shards, which training reads fastest in any order.")
    _source(sub)
    sub.add_argument("target", metavar="DST", help="a new folder, or one that was broken off")
    sub.add_argument("--to", choices=["arrayrecord"], default="arrayrecord", help="(default: %(default)s)")
    sub.add_argument("--shards", type=positive, required=True, metavar="N", help="how many files")
    who = sub.add_mutually_exclusive_group()
    who.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a processor)")
    who.add_argument(
        "--beam",
        metavar="FLAGS",
        help="run it as an Apache Beam pipeline with these flags of Beam: --beam='--runner=DataflowRunner …'; '': here",
    )

    sub = command("inspect", inspect, "Count records, fields and sizes, and list what is broken.")
    _source(sub)
    sub.add_argument("--count", type=int, default=1000, metavar="N", help="records to read; 0: all (default: 1000)")
    sub.add_argument("--png", type=Path, metavar="FILE", help="draw some of them on a sheet")

    sub = command("bench", bench, "Time reading, decoding, transforming and batching, and name the stage that limits.")
    _source(sub)
    sub.add_argument("--image-size", type=positive, default=224, metavar="N", help="pixels a side (default: 224)")
    sub.add_argument("--batch-size", type=positive, default=64, metavar="N", help="(default: 64)")
    sub.add_argument("--count", type=positive, default=512, metavar="N", help="examples to time (default: 512)")
    sub.add_argument("--threads", type=positive, default=2, metavar="N", help="of the whole pipeline (default: 2)")
    sub.add_argument("--workers", type=int, default=0, metavar="N", help="processes of so many threads (default: 0)")

    sub = command("tokenizer", tokenizer, "Train a sentencepiece tokenizer on the texts.")
    _source(sub)
    sub.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="pieces, marks and bytes included")
    sub.add_argument("--to", type=Path, default=Path("tokenizer"), metavar="DIR", help="(default: %(default)s)")


def _source(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("--split", default="train", help="of a dataset that has several (default: %(default)s)")


def convert(options: argparse.Namespace) -> Result:
    """`jmm data convert`."""
    from data_pipelines.convert import convert

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    how = {"split": options.split, "workers": options.workers, "beam": options.beam}
    done = convert(options.source, options.target, options.shards, **how, say=say)
    count, left_out = (sum(getattr(shard, name) for shard in done.shards) for name in ("records", "left_out"))
    text = f"{options.target}: {count:,} records in {len(done.shards)} shards, verified; {left_out:,} left out"
    return {"records": count, "left_out": left_out, "shards": len(done.shards), "made": done.made, "text": text}


def inspect(options: argparse.Namespace) -> Result:
    """`jmm data inspect`."""
    from data_pipelines.inspection import as_json, inspect

    found = inspect(options.source, split=options.split, count=options.count, png=options.png)
    return {**as_json(found), "text": "\n".join(found.lines())}


def bench(options: argparse.Namespace) -> Result:
    """`jmm data bench`."""
    from data_pipelines.throughput import throughput

    if options.workers < 0:
        raise UserError(f"--workers must be at least 0, not {options.workers}")
    names = ("split", "count", "threads", "workers", "image_size", "batch_size")
    found = throughput(options.source, **{name: getattr(options, name) for name in names})
    lines = [f"{stage:10}{rate:12,.0f} examples/s on one thread" for stage, rate in found.stages.items()]
    who = f"{found.threads} threads" + (f" of each of {found.workers} processes" if found.workers else "")
    lines.append(f"{'all':10}{found.whole:12,.0f} examples/s on {who}; {found.limit} limits")
    return {**vars(found), "limit": found.limit, "text": "\n".join(lines)}


def tokenizer(options: argparse.Namespace) -> Result:
    """`jmm data tokenizer`."""
    from data_pipelines.sources.layouts import records
    from data_pipelines.texts import texts
    from data_pipelines.train_tokenizer import train

    train(texts(records(options.source, options.split).open()), options.to, options.vocab_size)
    return {"path": str(options.to), "text": f"{options.to} holds a tokenizer of {options.vocab_size:,} pieces"}
