"""The figures of checkpoints: streaming a large one, forward passes and decoding against PyTorch.

python -m tests.benchmarks.checkpoints --json figures.json
"""

import sys

from tests.benchmarks import decoding, forward
from tests.benchmarks.report import run
from tests.benchmarks.streaming import streaming

MEASUREMENTS = {"streaming": streaming, **forward.MEASUREMENTS, **decoding.MEASUREMENTS}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, __doc__ or ""))
