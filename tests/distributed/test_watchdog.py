"""What the watchdog finds in a table; what it does with real processes is in tests/training/test_cluster.py."""

from dataclasses import replace

import pytest

from jmm.distributed.watchdog import GRACE, LOST, SILENCE, Status, Watchdog, judge
from jmm.errors import UserError

FIRST = Status(0, "a", step=8, phase="step", since=1.0, heard=0.1)
SECOND = Status(1, "b", step=8, phase="step", since=1.0, heard=0.1)


def verdict(*table, patience=60.0, own=FIRST):
    return judge(table, own, patience)


def test_nothing_is_wrong():
    assert verdict(FIRST, SECOND) is None
    assert verdict(FIRST, replace(SECOND, step=7, phase="data", since=1000.0)) is None  # the first has just moved
    assert verdict(FIRST, replace(SECOND, connected=False, heard=1000.0, code=0)) is None


@pytest.mark.parametrize(
    "change, says",
    [
        ({"connected": False}, "process 1 on b is dead; it was at step 8, phase 'step'"),
        ({"heard": SILENCE + 1}, "process 1 on b has been silent for 16 s; it was at step 8, phase 'step'"),
    ],
)
def test_one_is_lost(change, says):
    found = verdict(FIRST, replace(SECOND, **change))
    assert (found.text, found.code) == (says, LOST)


def test_one_is_late():
    waiting = replace(FIRST, since=70.0)
    found = verdict(waiting, replace(SECOND, step=7, phase="data", since=90.0))
    assert found.text == "process 1 on b has been at step 7, phase 'data' for 90 s; the others wait for it"
    found = verdict(waiting, replace(SECOND, phase="data", since=90.0))
    assert "process 1 on b has been at step 8, phase 'data'" in found.text
    for phase in ("start", "save"):
        found = verdict(replace(waiting, phase="data"), replace(SECOND, phase=phase, since=90.0))
        assert f"process 1 on b has been at step 8, phase '{phase}'" in found.text
    found = verdict(waiting, replace(SECOND, since=70.0))
    assert found.text == "all processes have been at step 8, phase 'step' for 70 s"
    assert verdict(waiting, replace(SECOND, since=70.0), patience=71.0) is None


def test_all_end_for_the_same_reason():
    found = verdict(FIRST, replace(SECOND, code=LOST, why="process 2 on c is dead", connected=False))
    assert (found.text, found.code) == ("process 2 on c is dead", LOST)


def test_one_ended_with_an_error():
    ended = replace(SECOND, code=2, why="no space", connected=False, heard=1000.0)
    assert verdict(FIRST, ended) is None  # it may find the same by itself
    found = verdict(FIRST, ended, own=replace(FIRST, since=GRACE + 1))
    assert (found.text, found.code) == ("process 1 on b ended with 2 at step 8, phase 'step': no space", 2)
    assert verdict(FIRST, ended, own=replace(FIRST, since=GRACE + 1, phase="close")) is None


def test_no_patience():
    with pytest.raises(UserError, match="--patience is how many seconds"):
        Watchdog(0.0)
