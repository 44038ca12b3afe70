"""Every figure of the attention core: `python -m tests.benchmarks.attention [--only NAME …] [--json FILE]`.

Rows named cpu_… need one core and torch; compile, memory, cycles and block_map need the `tpu` extra and no TPU;
the rest need an NVIDIA GPU and say so where there is none.
"""

import sys

from tests.benchmarks import attention_cpu, attention_gpu, attention_tpu
from tests.benchmarks.report import run

MEASUREMENTS = {
    **{f"cpu_{name}": each for name, each in attention_cpu.MEASUREMENTS.items()},
    **attention_tpu.MEASUREMENTS,
    **{f"gpu_{name}": each for name, each in attention_gpu.MEASUREMENTS.items()},
}

if __name__ == "__main__":
    sys.exit(run(MEASUREMENTS, "Figures of the attention core."))
