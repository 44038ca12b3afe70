"""The scripts with a gcloud and a kubectl that only record how they are called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
RUN_BY_USERS = [path for path in SCRIPTS if path.name != "lib.sh"]

STUB = """#!{python}
import json, os, sys
from pathlib import Path

folder = Path(os.environ["STUB"])
text = "" if sys.stdin.isatty() or {reads} is False else sys.stdin.read()
with (folder / "calls").open("a") as file:
    print(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:], *([text] if text else [])]), file=file)
answers = folder / "answers"
lines = answers.read_text().splitlines() if answers.exists() else []
if lines:
    answers.write_text("\\n".join(lines[1:]))
    code, _, said = lines[0].partition(" ")
    print(said)
    sys.exit(int(code))
"""
"""Writes its call down and ends as the next line of `answers` says: an exit code, and what is printed."""

AT = ["--name", "run", "--zone", "us-west4-a"]
PLACED = ["--zone", "us-west4-a"]
TPU = ["gcloud", "compute", "tpus"]


class Stub:
    """Commands that are not there, and what they were asked."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "kubectl", "jmm", "sudo"):
            path = folder / name
            path.write_text(STUB.format(python=sys.executable, reads=name == "kubectl"))
            path.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            **{"STUB": str(folder), "POLL": "0", "PAUSE": "0", "JMM": str(folder / "jmm"), "TMPDIR": str(folder)},
        }

    def answer(self, *lines):
        """What the next calls give."""
        (self.folder / "answers").write_text("\n".join(lines))

    def run(self, name, *arguments):
        """A script; gives its result, and forgets the calls before."""
        (self.folder / "calls").unlink(missing_ok=True)
        return subprocess.run(
            [str(ROOT / "tpu_scripts" / name), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def calls(self):
        """All calls of the last script."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path)


def test_shellcheck_finds_nothing():
    found = subprocess.run(
        ["shellcheck", "--external-sources", *(str(path.relative_to(ROOT)) for path in SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", RUN_BY_USERS, ids=lambda path: path.stem)
def test_help_is_the_head_of_the_file(stub, path):
    said = stub.run(path.name, "--help")
    assert said.returncode == 0 and not said.stderr and not stub.calls()
    assert path.name in said.stdout and "set -" not in said.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_mistakes_end_a_script(path):
    assert "set -euo pipefail" in path.read_text() or "/lib.sh" in path.read_text()


def test_create(stub):
    assert stub.run("create.sh", *AT, "--type", "v5litepod-16", "--spot", "--project", "mine").returncode == 0
    placed = [*PLACED, "--project", "mine"]
    asked = ["--accelerator-type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    assert stub.calls() == [[*TPU, "tpu-vm", "create", "run", *placed, *asked]]


def test_create_several_waits_until_they_are_there(stub):
    stub.answer("0", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE")
    assert stub.run("create.sh", *AT, "--type", "v5p-128", "--slices", "4").returncode == 0
    first, *looks = stub.calls()
    assert first[:5] == [*TPU, "queued-resources", "create"]
    assert first[-4:] == ["--node-count", "4", "--node-prefix", "run"] and len(looks) == 3
    stub.answer("0", "0 ACTIVE")
    stub.run("create.sh", *AT, "--type", "v4-32", "--reserved")
    assert stub.calls()[0][-3:] == ["--reserved", "--node-id", "run"]


@pytest.mark.parametrize(
    "answers, what",
    [
        (["1 no quota"], "run was not asked for"),
        (["0", "0 FAILED"], "run is FAILED"),
        (["0", "0 SUSPENDED"], "run is SUSPENDED"),
        (["0", "1"], "the state of run cannot be read"),
    ],
)
def test_what_fails_midway_says_what_is_left_and_how_it_goes_away(stub, answers, what):
    stub.answer(*answers)
    said = stub.run("create.sh", *AT, "--type", "v6e-256", "--slices", "2")
    assert said.returncode == 1 and what in said.stderr
    assert "delete.sh --name run --zone us-west4-a --slices 2 --queued" in said.stderr


def test_a_queue_that_takes_too_long(stub):
    stub.answer("0", *["0 WAITING_FOR_RESOURCES"] * 5)
    said = stub.run("create.sh", *AT, "--type", "v6e-256", "--queued", "--wait", "0")
    assert said.returncode == 1 and "is not there after 0 seconds" in said.stderr


def test_install_copies_to_every_slice_and_installs(stub):
    assert stub.run("install.sh", *AT, "--slices", "2", "--extra", "quickstart").returncode == 0
    calls = stub.calls()
    assert [call[3:5] for call in calls] == [["tpu-vm", "scp"]] * 2 + [["tpu-vm", "ssh"]] * 2
    assert [call[6] for call in calls[:2]] == ["run-0:jmm.tar.gz", "run-1:jmm.tar.gz"]
    assert all(call[-2:] == ["--worker", "all"] for call in calls[:2])
    assert "'jmm[tpu,quickstart]'" in calls[2][-1] and calls[2][5] == "run-0"
    assert not list(stub.folder.glob("jmm-*.tar.gz"))


def test_a_worker_trains_in_a_container(stub):
    """What install.sh has a worker write is run, and what docker would be asked is read."""
    image, mounts = "here/jmm:1", ["--mount", "/mnt/my runs", "--mount", "/data"]
    assert stub.run("install.sh", *AT, "--image", image, *mounts).returncode == 0
    home = stub.folder / "home"
    home.mkdir()
    subprocess.run(["tar", "-czf", home / "jmm.tar.gz", "tpu_scripts"], cwd=ROOT, check=True)
    installing = stub.calls()[-1][-1]
    (stub.folder / "calls").unlink()
    subprocess.run(["bash", "-c", installing], cwd=home, env=stub.environment, check=True)
    assert stub.calls() == [["sudo", "docker", "pull", image]] and (home / "jmm" / "tpu_scripts" / "worker.sh").exists()
    stub.environment["JMM"] = str(home / "env" / "bin" / "jmm")
    stub.answer("143", "0")
    train = ["experiments/quickstart.py", "--workdir", "/mnt/my runs/a b"]
    assert stub.run("worker.sh", "3", *train).returncode == 0
    seen = ["--volume", "/mnt/my runs:/mnt/my runs", "--volume", "/data:/data"]
    asked = ["run", "--rm", "--name", "jmm-train", "--privileged", "--network", "host", "--ipc", "host", *seen, image]
    assert stub.calls() == [["sudo", "docker", *asked, "jmm", "train", *train, "--cluster"]] * 2


def test_launch(stub):
    train = ["experiments/quickstart.py", "--workdir", "/mnt/my runs", "--steps", "5"]
    assert stub.run("launch.sh", *AT, "--restarts", "3", "--", *train).returncode == 0
    (call,) = stub.calls()
    assert call[3:6] == ["tpu-vm", "ssh", "run"] and call[-3:-1] == ["all", "--command"]
    wanted = "tpu_scripts/worker.sh 3 experiments/quickstart.py --workdir /mnt/my\\ runs --steps 5 "
    assert wanted in call[-1] and call[-1].endswith("&")


@pytest.mark.parametrize(
    "codes, runs, end", [([0], 1, 0), ([143, 137, 75, 0], 4, 0), ([134, 0], 2, 0), ([2], 1, 2), ([143] * 9, 4, 143)]
)
def test_a_worker_starts_again_where_that_helps(stub, codes, runs, end):
    stub.answer(*map(str, codes))
    said = stub.run("worker.sh", "3", "file.py", "--workdir", "there")
    assert said.returncode == end
    assert stub.calls() == [["jmm", "train", "file.py", "--workdir", "there", "--cluster"]] * runs
    assert ("which is the limit" in said.stderr) == (runs == 4 and end == 143)


def test_two_trainings_do_not_run_on_one_worker(stub):
    lock = str(stub.folder / "jmm-train.lock")
    holder = subprocess.Popen(["flock", lock, "sleep", "30"])
    try:
        while subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 0:
            pass  # the holder has not got it yet
        said = stub.run("worker.sh", "3", "file.py", "--workdir", "there")
    finally:
        holder.kill()
        holder.wait()
    assert said.returncode == 1 and "runs on this worker already" in said.stderr and not stub.calls()


def test_logs_fetch_and_delete(stub):
    stub.run("logs.sh", *AT, "--slices", "2", "--lines", "5", "--once")
    assert [call[5] for call in stub.calls()] == ["run-0", "run-1"]
    assert stub.calls()[0][-1].startswith("tail --lines 5 train.log | sed")
    stub.run("logs.sh", *AT, "--slices", "2")
    assert sorted(call[5] for call in stub.calls()) == ["run-0", "run-1"] and "--follow" in stub.calls()[0][-1]
    to = str(stub.folder / "results")
    stub.run("fetch.sh", *AT, "--slices", "2", "--from", "/mnt/runs/clip", "--to", to)
    assert stub.calls() == [[*TPU, "tpu-vm", "scp", "--recurse", "run-0:/mnt/runs/clip", to, *PLACED, "--worker", "0"]]
    stub.run("profile.sh", *AT, "--worker", "3")
    (call,) = stub.calls()
    assert call[:-1] == [*TPU, "tpu-vm", "ssh", "run", *PLACED, "--worker", "3", "--command"]
    container, process = call[-1].split(" || ")
    assert container == "sudo docker kill --signal USR2 jmm-train 2> /dev/null"
    assert process == 'pkill -USR2 -f "[j]mm train"'
    assert stub.run("profile.sh", *AT, "--slices", "2").returncode == 2
    stub.run("delete.sh", *AT)
    assert stub.calls() == [[*TPU, "tpu-vm", "delete", "run", *PLACED, "--quiet"]]
    stub.run("delete.sh", *AT, "--slices", "2")
    assert stub.calls() == [[*TPU, "queued-resources", "delete", "run", *PLACED, "--force", "--quiet"]]


def test_kubernetes(stub):
    train = ["experiments/quickstart.py", "--workdir", '/mnt/a "b"']
    asked = ["start", "--name", "run", "--topology", "v5p:4x4x8", "--image", "here/jmm:1", "--slices", "2"]
    assert stub.run("gke.sh", *asked, "--", *train).returncode == 0
    (call,) = stub.calls()
    assert call[:-1] == ["kubectl", "apply", "--filename", "-"]
    made = yaml.safe_load(call[-1])
    job = made["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (made["kind"], made["metadata"]["name"], job["replicas"]) == ("JobSet", "run", 2)
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 32
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x8",
    }
    assert pod["containers"][0]["command"] == ["jmm", "train", *train, "--cluster"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    stub.run("gke.sh", "delete", "--name", "run")
    assert stub.calls() == [["kubectl", "delete", "jobset", "run"]]
    stub.run("gke.sh", "logs", "--name", "run")
    assert stub.calls()[0][-1] == "jobset.sigs.k8s.io/jobset-name=run"


COMPLETE = {
    "create.sh": [*AT, "--type", "v5litepod-16", "--slices", "2"],
    "install.sh": AT,
    "launch.sh": [*AT, "--", "file.py", "--workdir", "there"],
    "logs.sh": AT,
    "fetch.sh": [*AT, "--from", "there", "--to", "nowhere"],
    "delete.sh": AT,
    "gke.sh": [
        "start",
        "--name",
        "run",
        "--topology",
        "v5e:4x4",
        "--image",
        "i",
        "--",
        "file.py",
        "--workdir",
        "there",
    ],
}


@pytest.mark.parametrize("name", COMPLETE)
def test_a_dry_run_prints_and_runs_nothing(stub, name):
    given = COMPLETE[name]
    where = given.index("--") if "--" in given else len(given)
    said = stub.run(name, *given[:where], "--dry-run", *given[where:])
    assert said.returncode == 0 and not said.stderr and not stub.calls()
    assert "gcloud compute tpus" in said.stdout or "kubectl apply" in said.stdout


@pytest.mark.parametrize(
    "name, arguments, why",
    [
        ("create.sh", ["--name", "run"], "--zone ZONE is missing"),
        ("create.sh", ["--name"], "--name needs a value"),
        ("create.sh", ["--name", "--zone", "z"], "--name needs a value"),
        ("create.sh", AT, "--type TYPE is missing"),
        ("create.sh", [*AT, "--type", "v9-8"], "no runtime is known for v9-8"),
        ("create.sh", [*AT, "--type", "v4-8", "--spot", "--reserved"], "--spot and --reserved exclude each other"),
        ("create.sh", [*AT, "--type", "v4-8", "--slices", "none"], "--slices is how many there are, not none"),
        ("install.sh", [*AT, "--wrong"], "--wrong is no option"),
        ("install.sh", [*AT, "--mount", "/data"], "--mount is for a container"),
        ("install.sh", [*AT, "--image", "i", "--mount", "data"], "--mount is a folder from / on"),
        ("install.sh", [*AT, "--image", "i", "--extra", "test"], "--extra is for what is installed on the workers"),
        ("launch.sh", [*AT, "file.py"], "what is for jmm train stands behind --"),
        ("launch.sh", AT, "nothing stands behind --"),
        ("launch.sh", [*AT, "--", "file.py", "--steps", "5"], "--workdir DIR is missing behind --"),
        ("launch.sh", [*AT, "--restarts", "x", "--", "file.py"], "--restarts is how often at most, not x"),
        ("fetch.sh", [*AT, "--from", "there"], "--to FOLDER is missing"),
        ("fetch.sh", [*AT, "--from", "there", "--to", "/"], "/ is there already"),
        ("logs.sh", [*AT, "--lines", "x"], "--lines is how many, not x"),
        ("gke.sh", [], "say what to do: start, logs or delete"),
        ("gke.sh", ["start", "--name", "run"], "--image IMAGE is missing"),
        ("gke.sh", ["start", "--name", "run", "--image", "i", "--topology", "16x16"], "such as v5e:16x16, not 16x16"),
    ],
)
def test_mistakes_are_one_sentence(stub, name, arguments, why):
    said = stub.run(name, *arguments)
    assert said.returncode == 2 and why in said.stderr and said.stderr.count("\n") == 1, said.stderr
    assert not stub.calls()
