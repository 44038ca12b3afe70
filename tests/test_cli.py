"""The `jmm` command: one sentence on standard error when something is wrong, one JSON object with --json."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jmm as jmm_package
from experiments.quickstart import experiment
from jmm import cli, commands
from jmm.evaluation import zero_shot
from jmm.overrides import field_names
from tests.evaluation import planted
from tests.generation import planted as telling
from tests.generation import systems

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
SYSTEMS = "clip, coca, dalle, decoder, dvae, encoder, encoder_decoder, image_gpt, pali, paligemma, simvlm, vit, vqgan"
HEAVY = ("jax", "flax", "numpy", "tyro", "rich", "PIL", "orbax", "grain", "matplotlib", "sklearn")


def jmm(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    """The one line that a command leaves on standard error, and nothing on standard output."""
    code, out, err = jmm(capsys, *arguments)
    assert code not in (0, None)
    assert out == ""
    assert err.startswith("jmm") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from jmm.cli import main
try:
    main(["--help"])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    for command in ("train", "evaluate", "classify", "search", "caption", "answer", "generate", "encode", "zoo"):
        assert command in done.stdout


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "jmm", "zoo", "nope"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"jmm zoo: there is no system nope; there are {SYSTEMS}\n"


def test_a_reader_may_have_enough():
    process = subprocess.Popen(
        [sys.executable, "-m", "jmm", "zoo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_version(capsys):
    assert jmm(capsys, "--version") == (0, "jmm 0.1.0\n", "")


@pytest.mark.parametrize("command", ["train", "evaluate", "classify", "search", "caption", "answer", "zoo"])
def test_every_command_has_help(capsys, command):
    code, out, err = jmm(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"jmm {command}" in out and "--json" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly' (choose from"),
        (["zoo", "--colour"], "--colour"),
        (["zoo", "clip", "vit"], "vit"),
        (["evaluate"], "DIR"),
        (["classify", "DIR", "a.png"], "--labels"),
        (["train"], "FILE.py is missing"),
        (["train", "missing.py", "--workdir", "D"], "there is no experiment file missing.py"),
        (["train", QUICKSTART], "--workdir DIR is missing"),
        (["train", QUICKSTART, "--stepps", "5"], "there is no field stepps; the nearest is steps"),
        (["train", QUICKSTART, "--steps", "many"], "many"),
        (["train", QUICKSTART, "--num-processes", "2", "--workdir", "D"], "--coordinator HOST:PORT"),
        (["train", QUICKSTART, "--cluster", "--workdir", "D"], "nothing here tells of a cluster"),
        (["train", QUICKSTART, "--cluster", "--coordinator", "a:1", "--workdir", "D"], "names them: give one"),
        (
            ["train", QUICKSTART, "--mesh.fsdp", "3", "--show-sharding"],
            "a multiple of 3 devices, there are 8",
        ),
        (["train", QUICKSTART, "--batch_size", "12", "--show-sharding"], "a batch of 12"),
        (["train", QUICKSTART, "--steps", "0", "--show-sharding"], "steps must be at least 1, not 0"),
        (["train", QUICKSTART, "--optimizer.accumulate", "0", "--show-sharding"], "optimizer.accumulate"),
        (["train", QUICKSTART, "--optimizer.freeze", "(", "--show-sharding"], "optimizer.freeze"),
        (
            ["train", QUICKSTART, "--model.image.patch_size", "5", "--show-sharding"],
            "does not divide into patches of 5",
        ),
        (["train", QUICKSTART, "--model.image.patch_size", "0", "--show-sharding"], "patch"),
        (["train", QUICKSTART, "--model.image.encoder.num_heads", "5", "--show-sharding"], "5 heads"),
        (["train", QUICKSTART, "--model.image.encoder.num_heads", "0", "--show-sharding"], "heads"),
        (["zoo", "nope"], f"there is no system nope; there are {SYSTEMS}"),
        (["classify", "DIR", "missing.png", "--labels", "a,b"], "missing.png"),
        (["classify", "DIR", "a.png", "--labels", " , "], "--labels names no label"),
        (["classify", "DIR", "a.png", "--labels", "a", "--template", "a photo"], "--template needs {}"),
        (["search", "DIR", "a", "--images", "missing"], "there is no folder missing"),
        (["search", "DIR", "a", "--images", ".", "--count", "0"], "--count must be at least 1"),
        (["caption", "DIR"], "IMAGE"),
        (["caption", "DIR", "missing.png"], "there is no image missing.png"),
        (["caption", "DIR", "a.png", "--beams", "0"], "'0' is no whole number from 1"),
        (["caption", "DIR", "a.png", "--max-new-tokens", "many"], "'many' is no whole number from 1"),
        (["caption", "DIR", "a.png", "--temperature", "1"], "jmm caption does not know --temperature 1"),
        (["answer", "DIR", "a.png"], "QUESTION"),
        (["answer", "DIR", "a.png", " "], "the question is empty"),
        (["answer", "DIR", "missing.png", "why?"], "there is no image missing.png"),
    ],
    ids=lambda value: " ".join(value).replace(QUICKSTART, "FILE") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    assert says in refused(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_mistakes_with_json_leave_standard_output_empty(capsys):
    assert "nope" in refused(capsys, "zoo", "nope", "--json")


@pytest.mark.parametrize("command", ["evaluate", "classify", "search", "caption", "answer"])
def test_a_folder_that_is_no_workdir(capsys, tmp_path, command):
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    more = {"classify": [picture, "--labels", "a,b"], "search": ["a", "--images", tmp_path]}
    more |= {"caption": [picture], "answer": [picture, "why?"]}
    message = refused(capsys, command, tmp_path, *more.get(command, []))
    expected = f"{tmp_path} is no workdir of jmm" if command == "evaluate" else f"{tmp_path} holds no model"
    assert expected in message


def test_help_of_an_experiment_lists_every_field(capsys):
    code, out, err = jmm(capsys, "train", QUICKSTART, "--help")
    assert (code, err) == (0, "")
    assert "--workdir" in out
    assert [name for name, _ in field_names(experiment()) if f"--{name}" not in out] == []


def test_zoo(capsys):
    code, out, err = jmm(capsys, "zoo")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == SYSTEMS.split(", ")
    code, out, err = jmm(capsys, "zoo", "clip")
    assert (code, err) == (0, "")
    for words in ("Radford et al. 2021", "image [B,H,W,C]", "text_embedding", "clip_b32", "clip_l14_336"):
        assert words in out


@pytest.mark.parametrize(
    "arguments", [["zoo"], ["zoo", "vit"], ["train", QUICKSTART, "--show-sharding"], ["train", "--help"]]
)
def test_json_is_one_object(capsys, arguments):
    code, out, err = jmm(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    assert out.endswith("}\n") and out.count("\n") == 1
    assert "text" not in json.loads(out)


def test_show_sharding(capsys):
    code, out, err = jmm(capsys, "train", QUICKSTART, "--show-sharding", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert (code, err) == (0, "")
    assert "data 2, fsdp 2, tensor 2, sequence 1" in out
    assert "params/image/encoder/blocks/mlp/up/kernel" in out
    _, whole, _ = jmm(capsys, "train", QUICKSTART, "--show-sharding", "--json")
    _, cut, _ = jmm(capsys, "train", QUICKSTART, "--show-sharding", "--json", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    whole, cut = json.loads(whole), json.loads(cut)
    assert [row["path"] for row in whole["arrays"]] == [row["path"] for row in cut["arrays"]]
    assert cut["bytes_per_device"] == sum(row["bytes_per_device"] for row in cut["arrays"])
    assert 0.25 < cut["bytes_per_device"] / whole["bytes_per_device"] < 0.35


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Pictures that a planted model knows, and the model in place of any workdir's."""
    monkeypatch.setattr(commands, "load_clip", lambda workdir: planted.model())
    save_pictures(tmp_path)
    return tmp_path


def save_pictures(folder):
    """Of an a, a b, and of both."""
    for name, pixels in {"a": planted.A, "b": planted.B, "ab": planted.picture(153, 204, 0, 0)}.items():
        Image.fromarray(pixels[..., 0]).save(folder / f"{name}.png")


def test_classify(capsys, album):
    arguments = [
        "classify",
        "DIR",
        album / "a.png",
        album / "ab.png",
        "--labels",
        "a, b,",
        "--template",
        "{}",
    ]
    code, out, err = jmm(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    first, second = json.loads(out)["images"]
    assert first["image"] == str(album / "a.png")
    assert list(first["labels"]) == ["a", "b"] and list(second["labels"]) == ["b", "a"]
    assert first["labels"]["a"] == pytest.approx(1 / (1 + np.exp(-planted.SCALE)), abs=1e-5)
    code, out, _ = jmm(capsys, *arguments)
    assert (code, out.splitlines()[0]) == (0, f"{album / 'a.png'}: a")


@pytest.mark.parametrize(("given", "template"), [([], "{} as it was taught"), (["--template", "a {}"], "a {}")])
def test_classify_asks_as_the_model_is_used_to(capsys, album, monkeypatch, given, template):
    asked, model = [], planted.model()
    taught = replace(model, preprocess=replace(model.preprocess, caption="{} as it was taught"))
    monkeypatch.setattr(commands, "load_clip", lambda workdir: taught)
    monkeypatch.setattr(zero_shot, "classify", lambda *given: asked.extend(given[3]) or np.ones((1, 1)))
    assert jmm(capsys, "classify", album, album / "a.png", "--labels", "a", *given)[0] == 0
    assert asked == [template]


def test_search(capsys, album):
    arguments = ["search", "DIR", "pictures of a", "--images", album, "--count", "2"]
    code, out, err = jmm(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [Path(each["image"]).name for each in found["images"]] == ["a.png", "ab.png"]
    assert [each["similarity"] for each in found["images"]] == pytest.approx([1, 0.6], abs=1e-5)
    code, out, _ = jmm(capsys, *arguments)
    assert (code, out) == (0, f"  1.000  {album / 'a.png'}\n  0.600  {album / 'ab.png'}\n")


# --- writing about pictures ---


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The same pictures, and a model in place of any that is loaded, which names them and repeats what it is asked."""
    monkeypatch.setattr(jmm_package, "load", lambda workdir: telling.model())
    save_pictures(tmp_path)
    return tmp_path


def test_caption(capsys, pictures):
    a, ab = pictures / "a.png", pictures / "ab.png"
    code, out, err = jmm(capsys, "caption", "DIR", a, ab)
    assert (code, out, err) == (0, f"{a}: a it is\n{ab}: b it is\n", "")
    code, out, err = jmm(capsys, "caption", "DIR", a, ab, "--prompt", "\nor", "--beams", "3", "--json")
    assert (code, err) == (0, "")
    expected = [{"image": str(a), "caption": "a\nor"}, {"image": str(ab), "caption": "b\nor"}]
    assert json.loads(out) == {"prompt": "\nor", "images": expected}
    assert jmm(capsys, "caption", "DIR", a, "--prompt", "\nor") == (0, f"{a}: a or\n", "")
    assert jmm(capsys, "caption", "DIR", a, "--max-new-tokens", "3") == (0, f"{a}: a i\n", "")


def test_answer(capsys, pictures):
    given = ["answer", "DIR", pictures / "b.png", "why {}?"]
    assert jmm(capsys, *given) == (0, "b to: why {}?\n", "")
    code, out, err = jmm(capsys, *given, "--json", "--beams", "2", "--max-new-tokens", "5")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "image": str(pictures / "b.png"),
        "question": "why {}?",
        "prompt": " to: why {}?",
        "answer": "b to:",
    }


def test_a_torn_picture(capsys, pictures):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "torn.png").write_bytes(whole[: len(whole) // 2])
    for more in (
        ["caption", "DIR", pictures / "a.png", pictures / "torn.png"],
        ["answer", "DIR", pictures / "torn.png", "?"],
    ):
        assert "torn.png is not a readable image" in refused(capsys, *more)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (planted.model, "DIR holds a Planted, which writes no text"),
        (lambda: systems.model_of("gpt2", planted.preprocess()), "DIR holds a Decoder, which writes without looking"),
    ],
)
@pytest.mark.parametrize("command", [["caption"], ["answer", "why?"]])
def test_models_that_write_nothing_about_pictures(capsys, pictures, monkeypatch, command, model, says):
    monkeypatch.setattr(jmm_package, "load", lambda workdir: model())
    assert says in refused(capsys, command[0], "DIR", pictures / "a.png", *command[1:])


def test_what_to_do_next():
    given = experiment()
    assert cli.next_command(given, planted.model(), Path("DIR")).startswith("jmm classify DIR photo.png --labels")
    seen = replace(given, evaluations=())
    assert cli.next_command(seen, planted.model(), Path("DIR")) == "jmm evaluate DIR"
    assert cli.next_command(seen, telling.model(), Path("DIR")) == "jmm caption DIR photo.png"
