"""`tfds build` on the builder that shows how one is written."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from data_pipelines.scenes import Scenes
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Examples, Fields

ROOT = Path(__file__).parents[2]
BUILDER = ROOT / "data_pipelines" / "builders" / "drawn_scenes.py"


def test_tfds_builds_it_and_it_is_read_without_tensorflow(tmp_path):
    command = ["-m", "tensorflow_datasets.scripts.cli.main", "build", str(BUILDER)]
    where = ["--file_format=array_record", f"--data_dir={tmp_path}"]
    done = subprocess.run([sys.executable, *command, *where], cwd=ROOT, capture_output=True, text=True, timeout=300)
    made = tmp_path / "drawn_scenes" / "1.0.0"
    assert done.returncode == 0 and made.is_dir(), done.stderr[-2000:]
    source = Examples(records(str(made), "test[:50%]").open(), Fields())
    drawn = Scenes("question", examples=1, held_out=200).source("held_out")
    assert len(source) == 100
    for index in (0, 57, 99):
        np.testing.assert_array_equal(source[index]["image"], drawn[index]["image"])
        for name in ("caption", "prompt", "answer"):
            assert source[index][name] == drawn[index][name]
    code = f"""
import sys
from data_pipelines.sources.layouts import records
records({str(made)!r}).open()[3]
sys.exit("tensorflow" in sys.modules and "tensorflow was imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
