"""jmm: multimodal transformers in JAX and Flax.

>>> import jmm
>>> model = jmm.load("runs/quickstart")
>>> outputs = model(**model.preprocess(texts=["a photo of the digit seven"]))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmm.interop.model import Model, load, save

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    # `import jmm` and `jmm --help` must not pay for importing jax.
    if name in ("Model", "load", "save"):
        from jmm.interop import model

        return getattr(model, name)
    raise AttributeError(f"module 'jmm' has no attribute {name!r}")
