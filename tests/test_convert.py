"""A published folder is trained on a mesh by one command, and what was trained is loaded by transformers: the commands
of the README's "Bring your checkpoint, take it with you", and what they refuse."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel

import jmm
from data_pipelines import pretrained
from jmm.cli import main
from jmm.training import loop
from tests.arrays import assert_close
from tests.tiny_checkpoints import two_towers

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "white": (250, 250, 250)}
SETTINGS = ["--steps", "3", "--batch_size", "8", "--optimizer.warmup_steps", "0", "--evaluate_every", "0"]
EXPERIMENT = "experiments/folder.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures with captions."""
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for i in range(40):
        name, colour = list(COLOURS.items())[i % 4]
        Image.new("RGB", (30 + i, 28), colour).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"a {name} picture"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return two_towers("clip", tmp_path_factory.mktemp("published") / "clip")


@pytest.fixture(scope="module")
def workdir(published, photos, tmp_path_factory):
    """Trained from the published folder on a mesh of eight devices, with a moving average."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    mesh = ["--mesh.fsdp", "2", "--mesh.tensor", "2"]
    arguments = ["train", EXPERIMENT, "--from", published, "--workdir", folder, "--data.path", photos, *SETTINGS, *mesh]
    assert main([*map(str, arguments), "--checkpoint.best", "None"]) == 0
    return folder


def run(capsys, *arguments):
    """What a command prints with --json."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def refused(capsys, *arguments):
    """The one sentence on standard error."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code and not out and err.count("\n") == 1, (code, out, err)
    return err


def test_training_starts_from_the_published_weights(published, photos):
    from pathlib import Path

    from jmm.interop.initial import initial_weights, start_from
    from jmm.overrides import override, read_experiment_file
    from jmm.training.step import build

    base = start_from(read_experiment_file(Path(EXPERIMENT)), published)
    experiment = override(base, ["--data.path", str(photos), "--batch_size", "8", "--mesh.fsdp", "2"], "jmm")
    state = build(experiment).init(initial_weights(experiment))
    expected = jmm.load(published).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.average, expected)
    # None of the moving average is the parameters' own buffer: both are donated to the step.
    pointers = [
        leaf.addressable_shards[0].data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves([state.params, state.average])
    ]
    assert len(set(pointers)) == len(pointers)


def test_what_was_trained_is_loaded_by_transformers(workdir, published, photos, tmp_path, capsys):
    raw, average = tmp_path / "raw", tmp_path / "average"
    run(capsys, "convert", workdir, raw, "--to", "hf")
    run(capsys, "convert", workdir, average, "--to", "hf", "--average")
    picture, texts = np.asarray(Image.open(photos / "3.png")), ["a red picture", "blue"]
    embeddings = []
    for folder, kept in ((raw, False), (average, True)):
        theirs, said = CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not any(said.values()), said
        inputs = AutoProcessor.from_pretrained(folder)(images=[picture], text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            out = theirs.eval()(**inputs)
        model = jmm.load(workdir, average=kept)
        ours = model(**model.preprocess(images=[picture], texts=texts))
        assert_close(ours["image_embedding"], out.image_embeds)
        assert_close(ours["text_embedding"], out.text_embeds)
        embeddings.append(np.asarray(ours["text_embedding"]))
        scores = run(capsys, "classify", folder, photos / "3.png", "--labels", "red,blue")
        assert set(scores["images"][0]["labels"]) == {"red", "blue"}
    before = np.asarray(jmm.load(published)(**model.preprocess(texts=texts))["text_embedding"])
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4, "the moving average is another model"
    assert np.abs(embeddings[0] - before).max() > 1e-3, "something was learnt"


def test_there_and_back_is_bit_for_bit(published, tmp_path, capsys):
    run(capsys, "convert", published, tmp_path / "ours", "--to", "jmm")
    run(capsys, "convert", published, tmp_path / "theirs", "--to", "hf")
    names = sorted(path.name for path in published.iterdir())
    assert {"model.safetensors", "config.json", "vocab.json", "preprocessor_config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "theirs" / name).read_bytes() == (published / name).read_bytes(), name
    ours, theirs = jmm.load(tmp_path / "ours"), jmm.load(published)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    np.testing.assert_array_equal(ours.preprocess(texts=["a cat"])["text"], theirs.preprocess(texts=["a cat"])["text"])
    run(capsys, "convert", tmp_path / "ours", tmp_path / "again", "--to", "hf")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["hf", "jmm", "stablehlo"])
def test_a_folder_of_weights_alone(published, tmp_path, capsys, form):
    """Without a tokenizer and an image processor there is nothing to take along."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(published / name, tmp_path / "bare")
    run(capsys, "convert", tmp_path / "bare", tmp_path / "out", "--to", form)
    if form != "stablehlo":
        jax.tree.map(np.testing.assert_array_equal, jmm.load(tmp_path / "out").variables, jmm.load(published).variables)


def test_few_images_with_many_texts(published):
    model = jmm.load(published)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(9)]
    texts = ["a cat", "two dogs", "nothing at all"]
    both = model(**model.preprocess(images=pictures, texts=texts))
    assert both["image_embedding"].shape[0] == 9 and both["text_embedding"].shape[0] == 3
    assert_close(both["text_embedding"], model(**model.preprocess(texts=texts))["text_embedding"], 1e-5)
    assert_close(both["image_embedding"], model(**model.preprocess(images=pictures))["image_embedding"], 1e-5)


def test_another_resolution(published, photos, tmp_path, capsys):
    run(capsys, "convert", published, tmp_path / "large", "--to", "hf", "--image-size", "32")
    large = jmm.load(tmp_path / "large")
    assert large.config.image.image_size == (32, 32)
    assert large.preprocess(images=[np.zeros((50, 40, 3), np.uint8)])["image"].shape == (1, 32, 32, 3)
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    expected = jmm.load(published)(image=image)["image_embedding"]  # interpolates as it runs
    assert_close(large(image=image)["image_embedding"], expected, 1e-5)
    assert "do not divide into patches of 8" in refused(
        capsys, "convert", published, tmp_path / "odd", "--to", "hf", "--image-size", "33"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["SRC", "DST", "--to", "gguf"], "invalid choice: 'gguf'"),
        (["SRC", "DST", "--tow", "hf"], "required: --to"),
        (["SRC", "DST"], "required: --to"),
        (["nowhere", "DST", "--to", "hf"], "there is no folder nowhere"),
        (["SRC", "SRC", "--to", "hf"], "exists; choose another folder"),
        (["SRC", "DST", "--to", "hf", "--average"], "is no workdir of jmm; only those keep a moving average"),
        (["SRC", "DST", "--to", "jmm", "--dtype", "bfloat16"], "--dtype is for --to hf"),
        (["SRC", "DST", "--to", "hf", "--image-size", "big"], "'big' is no size; give it as 224 or"),
        (["SRC", "DST", "--to", "hf", "--image-size", "0"], "'0' is no size"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(published, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    names = {"SRC": published, "DST": "out"}
    assert says in refused(capsys, "convert", *(names.get(each, each) for each in arguments))
    assert list(tmp_path.iterdir()) == []


def test_another_resolution_of_an_older_config(published, tmp_path, capsys):
    """Whose fields stand twice, and with fields that are not ours."""
    shutil.copytree(published, tmp_path / "older")
    path = tmp_path / "older" / "config.json"
    described = json.loads(path.read_text())
    described["vision_config"]["own"] = 5
    described |= {"text_config_dict": described["text_config"], "vision_config_dict": described["vision_config"]}
    path.write_text(json.dumps(described))
    run(capsys, "convert", tmp_path / "older", tmp_path / "large", "--to", "hf", "--image-size", "32")
    found = json.loads((tmp_path / "large" / "config.json").read_text())
    assert found["vision_config"] == {**described["vision_config"], "image_size": 32}
    assert found["text_config"] == described["text_config"]
    assert not {"text_config_dict", "vision_config_dict"} & found.keys()
    assert jmm.load(tmp_path / "large").config.image.image_size == (32, 32)
    assert CLIPModel.from_pretrained(tmp_path / "large").config.vision_config.image_size == 32


def test_a_run_without_a_moving_average(published, photos, tmp_path, capsys):
    more = ["--optimizer.average", "None", "--checkpoint.best", "None", "--steps", "1"]
    run(
        capsys,
        "train",
        EXPERIMENT,
        "--from",
        published,
        "--workdir",
        tmp_path / "run",
        "--data.path",
        photos,
        *SETTINGS,
        *more,
    )
    message = refused(capsys, "convert", tmp_path / "run", tmp_path / "out", "--to", "hf", "--average")
    assert "keeps no moving average of the weights" in message


def test_what_transformers_cannot_express_is_refused(photos, tmp_path, capsys):
    tiny = ["--model.image.encoder.depth", "1", "--model.text.encoder.depth", "1", "--checkpoint.best", "None"]
    run(capsys, "train", EXPERIMENT, "--workdir", tmp_path / "run", "--data.path", photos, *SETTINGS, *tiny)
    message = refused(capsys, "convert", tmp_path / "run", tmp_path / "out", "--to", "hf")
    assert "clip cannot express this model" in message and "image.pool is 'mean'" in message
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_without_the_folder_it_started_from(published, photos, tmp_path, capsys, monkeypatch):
    source, workdir = shutil.copytree(published, tmp_path / "source"), tmp_path / "run"
    command = ["train", EXPERIMENT, "--from", source, "--workdir", workdir, "--data.path", photos, *SETTINGS]
    command += ["--checkpoint.best", "None", "--steps", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(loop.StopSignal, "asked", lambda self, step: setattr(self, "name", "SIGTERM") or step == 1)
        assert "stopped by SIGTERM after step 1" in refused(capsys, *command, "--json")
    shutil.rmtree(source)
    pretrained._load.cache_clear()
    assert run(capsys, *command)["step"] == 2
    assert json.loads((workdir / "experiment.json").read_text())["initial"] == str(source)
    figures = run(capsys, *command)["figures"]  # it is finished, and the same command says so again
    moved = workdir.rename(tmp_path / "moved")
    pretrained._load.cache_clear()
    evaluated = run(capsys, "evaluate", moved)["figures"]
    assert evaluated == {name: figures[name] for name in evaluated} and evaluated
    ranks = run(capsys, "evaluate", moved, "--evaluations.0.ranks", "2")["figures"]
    assert ranks.keys() == {"eval/retrieval/text_to_image@2", "eval/retrieval/image_to_text@2"}
    assert "the nearest is evaluations.0.ranks" in refused(capsys, "evaluate", moved, "--evaluations.0.rank", "2")
    assert "--steps is nothing to evaluate with; --eval" in refused(capsys, "evaluate", moved, "--steps", "2")
    scores = [run(capsys, "classify", moved, photos / "3.png", "--labels", "red,blue")["images"]]
    for form in ("hf", "jmm"):
        run(capsys, "convert", moved, tmp_path / form, "--to", form, "--average")
        scores.append(run(capsys, "classify", tmp_path / form, photos / "3.png", "--labels", "red,blue")["images"])
    assert scores[0] == scores[1] == scores[2], "the caption of a label goes along"
    assert run(capsys, "classify", moved, photos / "3.png", "--labels", "red,blue", "--template", "{}") != scores[0]
    for name in ("vocab.json", "merges.txt", "preprocessor_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (published / name).read_bytes()

    shutil.rmtree(moved / "tokenizer")
    for form in ("hf", "stablehlo"):
        message = refused(capsys, "convert", moved, tmp_path / "out", "--to", form)
        assert f"the folder {source}, which holds the tokenizer of this model, is missing" in message
    assert not (tmp_path / "out").exists()


def test_weights_of_another_system_are_refused(published, photos, tmp_path, capsys):
    message = refused(
        *(capsys, "train", EXPERIMENT, "--from", published, "--workdir", tmp_path / "run"),
        *("--data.path", photos, *SETTINGS, "--model.image.encoder.depth", "3"),
    )
    assert "are of another system: image.encoder.depth is 2 there and 3 here" in message


def test_a_dataset_with_its_own_preprocessing_is_refused(published, tmp_path, capsys):
    message = refused(capsys, "train", "experiments/quickstart.py", "--from", published, "--workdir", tmp_path / "run")
    assert "--from needs one with a field preprocess" in message


def test_a_model_computes_in_the_precision_that_is_asked_for(published):
    half, auto = jmm.load(published, precision="bfloat16"), jmm.load(published)
    batch = auto.preprocess(texts=["a red square"])
    one, other = (np.asarray(model(**batch)["text_embedding"], np.float32) for model in (half, auto))
    assert half(**batch)["text_features"].dtype == jnp.bfloat16 and auto(**batch)["text_features"].dtype == jnp.float32
    assert 0 < np.abs(one - other).max() < 0.05
