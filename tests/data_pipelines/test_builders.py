"""The builders that show how a dataset of TFDS is written. TFDS' own command would need Apache Beam."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.digits import Digits
from data_pipelines.scenes import Scenes
from data_pipelines.sources.layouts import records
from data_pipelines.sources.records import Examples, Fields

ROOT = Path(__file__).parents[2]
BUILD = """
from data_pipelines.builders.{module} import {name}
{name}(data_dir={to!r}, file_format="array_record").download_and_prepare()
"""
BUILT = {
    "drawn_scenes": ("DrawnScenes", Scenes("question", examples=1, held_out=200), ("caption", "prompt", "answer"), 100),
    "handwritten_scans": ("HandwrittenScans", Digits(image_size=8), ("caption", "label"), 180),
}


@pytest.mark.parametrize("module", BUILT)
def test_tfds_builds_it_and_it_is_read_without_tensorflow(tmp_path, module):
    name, dataset, fields, half = BUILT[module]
    command = [sys.executable, "-c", BUILD.format(module=module, name=name, to=str(tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    made = tmp_path / module / "1.0.0"
    assert done.returncode == 0 and made.is_dir(), done.stderr[-2000:]
    source = Examples(records(str(made), "test[:50%]").open(), Fields())
    expected = dataset.source("held_out")
    assert len(source) == half
    for index in (0, half // 2 + 7, half - 1):
        # Grey pictures are read as RGB.
        np.testing.assert_array_equal(*np.broadcast_arrays(source[index]["image"], expected[index]["image"]))
        for field in fields:
            assert source[index][field] == expected[index][field]
    code = f"""
import sys
from data_pipelines.sources.layouts import records
records({str(made)!r}).open()[3]
sys.exit("tensorflow" in sys.modules and "tensorflow was imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
