"""The `report/` of a workdir: curves of the run and the pictures of its evaluations."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jmm.distributed.processes import is_first
from jmm.evaluation import pictures
from jmm.experiment import Experiment
from jmm.model import Model
from jmm.training.metrics import read_metrics


def write_report(experiment: Experiment, model: Model, workdir: Path) -> list[Path]:
    """Draws everything anew; gives the paths. Every process takes part, because all devices run the model; the
    first one writes."""
    if is_first():
        folder = workdir / "report"
        folder.mkdir(exist_ok=True)
        return _draw(experiment, model, workdir, folder)
    with TemporaryDirectory() as nowhere:
        _draw(experiment, model, workdir, Path(nowhere))
    return []


def _draw(experiment: Experiment, model: Model, workdir: Path, folder: Path) -> list[Path]:
    lines = read_metrics(workdir)
    made = []
    for group, prefix in {"training": "train/", "evaluation": "eval/"}.items():
        panels = _panels(lines, prefix)
        if panels:
            path = folder / f"{group}.png"
            pictures.curves(path, panels, f"{experiment.name}: {group}")
            made.append(path)
    for evaluation in experiment.evaluations:
        made += evaluation.draw(model, experiment.data, folder)
    return made


def _panels(lines: list[dict[str, Any]], prefix: str) -> dict[str, dict[str, pictures.Curve]]:
    """Figures as curves, those that differ only behind an @ (recall at several ranks) together in one panel; the
    loss first."""
    panels: dict[str, dict[str, pictures.Curve]] = {}
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    for name in sorted(names, key=lambda name: name != prefix + "loss"):
        title, _, label = name.removeprefix(prefix).partition("@")
        points = [(line["step"], line[name]) for line in lines if name in line]
        panels.setdefault(title, {})[f"@{label}" if label else ""] = points
    return panels
