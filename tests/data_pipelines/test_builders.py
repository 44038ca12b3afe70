"""The builder that shows how a dataset of TFDS is written. TFDS' own command would need Apache Beam."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from data_pipelines.scenes import Scenes
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Examples, Fields

ROOT = Path(__file__).parents[2]
BUILD = """
from data_pipelines.builders.drawn_scenes import DrawnScenes
DrawnScenes(data_dir={!r}, file_format="array_record").download_and_prepare()
"""


def test_tfds_builds_it_and_it_is_read_without_tensorflow(tmp_path):
    command = [sys.executable, "-c", BUILD.format(str(tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
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
