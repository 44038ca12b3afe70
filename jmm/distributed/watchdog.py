"""Watches the processes that train as one, and ends this one when another is lost or late, rather than hang.

    process 0 ── its table of all: step, phase, since when ──► every process, each second
        ▲                                                          │
        └───────────── this process's step and phase ──────────────┘

A closed connection is a dead process, silence a stopped one, and a table in which nothing moves a hanging one.
"""

import ctypes
import faulthandler
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jmm.errors import UserError

LOST = 75
"""Exit code of a process that lost another: a failure that passes (EX_TEMPFAIL). Launchers start all again."""
BEAT = 1.0
"""Seconds between two reports."""
SILENCE = 15.0
"""Seconds without a report after which a process counts as lost."""
GRACE = 10.0
"""Seconds that a process has to end by itself once another ended with an error."""
ADDRESS = 64
"""Bytes in which process 0 tells its address."""

ABORT_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
"""What the system calls when the process aborts."""

KEPT: list["Watchdog"] = []
"""Those whose handler of it stays to the end of the process."""

Phase = Literal["start", "data", "compile", "step", "evaluate", "save", "close"]
PHASES: tuple[Phase, ...] = ("start", "evaluate", "save", "data", "compile", "step", "close")
"""In their order at one number of steps: what is evaluated and saved is what was before the next batch."""


@dataclass(frozen=True)
class Status:
    """What one process does."""

    process: int
    host: str
    step: int = 0
    """Steps that it started."""
    phase: Phase = "start"
    since: float = 0.0
    """Seconds for which it has done so."""
    heard: float = 0.0
    """Seconds since it said so."""
    connected: bool = True
    code: int | None = None
    """How it ended, if it said so."""
    why: str = ""
    """The error that ended it."""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def place(self) -> str:
        """Where it is."""
        return f"step {self.step}, phase {self.phase!r}"


@dataclass(frozen=True)
class Verdict:
    """Why this process must end."""

    text: str
    code: int = LOST


def judge(table: Sequence[Status], own: Status, patience: float) -> Verdict | None:
    """What is wrong with the processes of a table, if anything is; `patience` in seconds without any progress."""
    for each in table:
        if each.code == LOST:
            return Verdict(each.why)
        if each.code is None and (not each.connected or each.heard > SILENCE):
            how = f"has been silent for {each.heard:.0f} s" if each.connected else "is dead"
            return Verdict(f"{each} {how}; it was at {each.place}")
    for each in table:
        if each.code and own.since > GRACE and own.phase != "close":
            return Verdict(f"{each} ended with {each.code} at {each.place}: {each.why}", each.code)
    running = [each for each in table if each.code is None]
    if not running or min(each.since for each in running) < patience:
        return None
    last = min(running, key=order)
    late = [each for each in running if order(each) == order(last)]
    if len(late) == len(running):
        return Verdict(f"all processes have been at {last.place} for {last.since:.0f} s")
    return Verdict(
        f"{', '.join(map(str, late))} has been at {last.place} for {last.since:.0f} s; the others wait for it"
    )


def order(status: Status) -> tuple[int, int]:
    """How far a process is."""
    return status.step, PHASES.index(status.phase)


class Hub(socketserver.ThreadingTCPServer):
    """The table, in process 0; answers each report with it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("", 0), Reports)
        self._known: dict[int, tuple[Status, float]] = {}
        self._lock = threading.Lock()

    def note(self, status: Status) -> None:
        """Takes a report."""
        with self._lock:
            self._known[status.process] = (status, time.monotonic())

    def lost(self, process: int) -> None:
        """Notes that a connection was closed."""
        with self._lock:
            status, heard = self._known[process]
            self._known[process] = (replace(status, connected=False), heard)

    def table(self) -> list[Status]:
        """What is known now."""
        now = time.monotonic()
        with self._lock:
            known = list(self._known.values())
        return [replace(status, heard=now - at, since=status.since + now - at) for status, at in known]


class Reports(socketserver.StreamRequestHandler):
    """One process's connection to the hub."""

    server: Hub

    def handle(self) -> None:
        """Reads a report a line, and answers each with the table."""
        process = None
        with suppress(OSError):
            while line := self.rfile.readline():
                status = Status(**json.loads(line))
                process = status.process
                self.server.note(status)
                self.wfile.write(json.dumps([asdict(each) for each in self.server.table()]).encode() + b"\n")
        if process is not None:
            self.server.lost(process)


class Watchdog:
    """Reports what this process does, and ends it with a sentence, the stacks of its threads and an exit code when the
    others cannot go on. A process that trains alone has nothing to watch.

    Enter it in every process at once; leave it with the error that ends the run, if one does.
    """

    def __init__(self, patience: float, end: Callable[[Verdict], None] | None = None):
        if not patience > 0:
            raise UserError(f"--patience is how many seconds may pass without progress, above 0, not {patience:g}")
        self._patience, self._end = patience, end or self._exit
        self._own = Status(jax.process_index(), socket.gethostname())
        self._moved = time.monotonic()
        self._table: list[Status] = []
        self._hub: Hub | None = None
        self._report, self._left = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._on_abort = ABORT_HANDLER(self._aborted)

    def at(self, phase: Phase, step: int) -> None:
        """Says what this process does now; `step` counts those it started."""
        if (phase, step) != (self._own.phase, self._own.step):
            self._own, self._moved = replace(self._own, phase=phase, step=step), time.monotonic()

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1:
            if jax.process_index() == 0:
                self._hub = Hub()
                threading.Thread(target=self._hub.serve_forever, daemon=True).start()
            address = share_address(self._hub.server_address[1] if self._hub else 0)
            self._thread = threading.Thread(target=self._watch, args=(address,), daemon=True)
            self._thread.start()
            # Where process 0 dies, jax aborts the others at once, from a thread of its own and without its name. A
            # handler of Python's would only run after that.
            ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
            KEPT.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._thread is None:
            return
        if error is not None:
            # It may come of another's death, of which its connection tells at once, and its silence later.
            self._await_verdict(0.0 if isinstance(error, (UserError, KeyboardInterrupt)) else SILENCE)
        code = error.code if isinstance(error, UserError) else 130 if kind is KeyboardInterrupt else 1
        why = (str(error).splitlines() or [kind.__name__])[0] if kind else ""
        self._own = replace(self._own, code=code if kind else 0, why=why)
        self._left.set()
        self._report.set()
        self._thread.join(SILENCE)
        if self._hub is not None:
            self._await_others()
            self._hub.shutdown()
            self._hub.server_close()

    def _aborted(self, _: int) -> None:
        self._await_verdict()
        if self._own.code is not None:  # this process had ended already and only waited for the others
            os._exit(self._own.code)

    def _await_verdict(self, seconds: float = 0.0) -> None:
        """Gives the thread that watches time to find out who is lost, and to end this process."""
        if self._thread is not None:
            self._thread.join(seconds + 3 * BEAT)

    def _await_others(self) -> None:
        """Until they know that this process has ended, or have ended too."""
        assert self._hub is not None
        until = time.monotonic() + 2 * BEAT
        while time.monotonic() < until and any(each.code is None and each.connected for each in self._hub.table()):
            time.sleep(BEAT / 10)

    def _status(self) -> Status:
        return replace(self._own, since=time.monotonic() - self._moved)

    def _watch(self, address: tuple[str, int]) -> None:
        try:
            with socket.create_connection(address, timeout=SILENCE) as connection, connection.makefile("rb") as answers:
                while True:
                    own = self._status()
                    connection.sendall(json.dumps(asdict(own)).encode() + b"\n")
                    line = answers.readline()
                    if not line:
                        raise ConnectionError
                    self._table = [Status(**each) for each in json.loads(line)]
                    if own.code is not None:
                        return
                    if verdict := judge(self._table, own, self._patience):
                        self._own = replace(self._own, code=verdict.code, why=verdict.text)
                        connection.sendall(json.dumps(asdict(self._status())).encode() + b"\n")
                        self._end(verdict)
                        return
                    self._report.wait(BEAT)
        except OSError as error:
            self._first_is_gone(isinstance(error, TimeoutError))

    def _first_is_gone(self, silent: bool) -> None:
        first = next((each for each in self._table if each.process == 0), None)
        if self._left.is_set() or (first and first.code == 0):
            return
        if first is None:
            self._end(Verdict("process 0 cannot be reached to report to"))
        elif first.code:
            time.sleep(GRACE)
            self._end(Verdict(f"{first} ended with {first.code} at {first.place}: {first.why}", first.code))
        else:
            how = f"has been silent for {SILENCE:.0f} s" if silent else "is dead"
            self._end(Verdict(f"{first} {how}; it was at {first.place}"))

    def _exit(self, verdict: Verdict) -> None:
        own = self._status()
        print(f"jmm train: {verdict.text}; {own}, at {own.place}, ends with {verdict.code}", file=sys.stderr)
        if verdict.code == LOST:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        sys.stderr.flush()
        if self._hub is not None:
            self._await_others()
        os._exit(verdict.code)


def share_address(port: int) -> tuple[str, int]:
    """Where process 0 listens, which it tells all; `port` is read in process 0 alone."""
    told = f"{own_address()}:{port}".encode().ljust(ADDRESS)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(told, np.uint8)).tobytes()
    host, _, listening = told.decode().strip().rpartition(":")
    return host, int(listening)


def own_address() -> str:
    """The address by which other machines reach this one."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: it makes the system choose a way out
        return str(probe.getsockname()[0])
    with suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return "127.0.0.1"
