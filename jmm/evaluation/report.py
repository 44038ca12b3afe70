"""The `report/` of a workdir: curves of the run and the pictures of its evaluations."""

from pathlib import Path

from jmm.evaluation import pictures
from jmm.experiment import Experiment
from jmm.model import Model
from jmm.training.metrics import read_metrics


def write_report(experiment: Experiment, model: Model, workdir: Path) -> list[Path]:
    """Draws everything anew; gives the paths."""
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    lines = read_metrics(workdir)
    made = []
    known = {name: None for line in lines for name in line}
    groups = {"training": "train/", "evaluation": "eval/"}
    for group, prefix in groups.items():
        names = [name for name in known if name.startswith(prefix)]
        if names:
            path = folder / f"{group}.png"
            pictures.curves(path, lines, names, f"{experiment.name}: {group}")
            made.append(path)
    for evaluation in experiment.evaluations:
        made += evaluation.draw(model, experiment.data, folder)
    return made
