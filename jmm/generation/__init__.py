"""Writing with a model: tokens and strings."""

from jmm.generation.generate import complete, generate
from jmm.generation.sample import Sampling
from jmm.generation.write import Written

__all__ = ["Sampling", "Written", "complete", "generate"]
