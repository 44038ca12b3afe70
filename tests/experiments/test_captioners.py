"""The experiment with the most tasks, a hundredth of it: the loss falls, and what was learnt is written and scored."""

import json
from dataclasses import replace
from pathlib import Path

from jmm.overrides import read_experiment_file
from jmm.training.loop import train

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_a_hundredth_of_the_training_is_a_beginning(tmp_path):
    whole = read_experiment_file(EXPERIMENTS / "pali_scenes.py")
    # Thirty steps have to be longer ones than those of thousands.
    optimizer = replace(whole.optimizer, learning_rate=3e-3, warmup_steps=3, average=None)
    few = tuple(replace(each, count=8) for each in whole.evaluations[:1])
    short = replace(whole, steps=30, batch_size=16, optimizer=optimizer, evaluations=few, evaluate_every=0, log_every=1)
    outcome = train(short, tmp_path)
    losses = [line.get("train/captioning", line["train/loss"]) for line in lines(tmp_path) if "train/loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    scores = {figure.rsplit("/", 1)[1]: value for figure, value in outcome.figures.items() if "eval/" in figure}
    assert scores.keys() == {"exact", "bleu4", "cider"} and 0 <= scores["bleu4"] <= 1


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
