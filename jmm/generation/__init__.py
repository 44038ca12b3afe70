"""Writing with a model: tokens and strings."""

from jmm.generation.beam import Beams
from jmm.generation.generate import generate
from jmm.generation.sample import Sampling
from jmm.generation.texts import complete, tell, write_texts
from jmm.generation.write import Written

__all__ = ["Beams", "Sampling", "Written", "complete", "generate", "tell", "write_texts"]
