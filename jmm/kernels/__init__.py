"""The attention core and the formulas that say which token may look at which."""

from jmm.kernels import masks
from jmm.kernels.attention import attention
from jmm.kernels.decode import decode_attention

__all__ = ["attention", "decode_attention", "masks"]
