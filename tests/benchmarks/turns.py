"""Contestants on one core, each a process of its own, taken in turn: processor times that can be compared."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]

Once = Callable[[], object]
Make = Callable[[str], Once]
"""What a contestant does for a case."""


def serve(make: Make) -> None:
    """Answers each line, a case, with the processor seconds of doing it once; compilation is done before.

    The first time in a turn is not counted: memory that was given back while the others ran is asked for anew then,
    which took up to half a step's time, and never does in steps that follow each other.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    made = functools.cache(make)
    for line in sys.stdin:
        once = made(line.rstrip("\n"))
        once()
        start = time.process_time()
        once()
        print(time.process_time() - start, flush=True)


def take_turns(module: str, contestants: Mapping[str, Make], case: str, turns: int) -> list[list[float]]:
    """The seconds of each contestant, turn by turn. `python -m module serve NAME` must call `serve`."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", module, "serve", name],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name in contestants
        ]

        def ask(process: "subprocess.Popen[str]") -> float:
            print(case, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        return [[ask(process) for process in processes] for _ in range(turns)]
