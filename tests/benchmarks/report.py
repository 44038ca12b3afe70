"""Rows of a benchmark: printed as a table, written as JSON."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure and the bar it is held against."""

    what: str
    value: float
    unit: str
    target: str
    ok: bool


Measurement = Callable[[], Sequence[Row]]


def run(measurements: dict[str, Measurement], description: str) -> int:
    """Runs the chosen measurements, prints the table; gives 1 if a figure falls short."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", nargs="+", choices=measurements, default=list(measurements), metavar="NAME")
    options = parser.parse_args()
    console, rows = Console(), []
    for name in options.only:
        for row in measurements[name]():
            console.print(f"{row.what}: {row.value:,.4g} {row.unit}", highlight=False)
            rows.append(row)
    table = Table("what", "value", "unit", "target", "ok")
    table.columns[1].justify = "right"
    for row in rows:
        table.add_row(row.what, f"{row.value:,.4g}", row.unit, row.target, "yes" if row.ok else "NO")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.ok for row in rows) else 1
