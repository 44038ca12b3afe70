"""Broken records in training: counted in the metrics, listed in the workdir, too many of them end it."""

import json
from dataclasses import replace

import pytest

from data_pipelines.own import OwnData
from data_pipelines.sources.layouts import Found
from experiments.own_data import experiment
from jmm.errors import UserError
from jmm.training.loop import train
from tests.data_pipelines.sources.layouts import encoded, picture


def pairs(folder, count, broken):
    folder.mkdir()
    lines = ["file_name,caption"]
    for i in range(count):
        (folder / f"{i}.png").write_bytes(b"nothing" if i in broken else encoded(picture(i % 5)))
        lines.append(f"{i}.png,number {i}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return Found(str(folder))


def small(records, **changes):
    config = experiment()
    data = replace(config.data, records=records)
    assert isinstance(data, OwnData)
    image = replace(config.model.image, encoder=replace(config.model.image.encoder, depth=1))
    text = replace(config.model.text, encoder=replace(config.model.text.encoder, depth=1))
    optimizer = replace(config.optimizer, warmup_steps=1)
    settings = {"steps": 4, "batch_size": 8, "log_every": 1, "evaluations": (), "evaluate_every": 0}
    return replace(
        config,
        model=replace(config.model, image=image, text=text),
        data=data,
        optimizer=optimizer,
        **settings | changes,
    )


def test_they_are_counted_and_listed(tmp_path):
    train(small(pairs(tmp_path / "own", 20, {2, 7}), broken_share=0.5), tmp_path / "run")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["data/skipped/image"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped" / "process-0.jsonl").read_text().splitlines()]
    assert sorted(line["record"] for line in lines) == [2, 7] and {line["reason"] for line in lines} == {"image"}
    assert all(f"captions.csv ({line['record']}.png): " in line["message"] for line in lines)


def test_too_many_end_it(tmp_path):
    config = small(pairs(tmp_path / "own", 20, {2, 7}), broken_share=0.01, steps=60)
    with pytest.raises(UserError, match=r"records of OwnData are broken, more than the share of 0.01"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "skipped" / "process-0.jsonl").is_file()
