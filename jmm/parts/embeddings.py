"""How a modality becomes tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jmm.parts.norms import BatchNorm
from jmm.parts.resnet import Conv


class PatchEmbedding(nn.Module):
    """Cuts an image into P × P patches and maps each linearly to the width (Dosovitskiy et al. 2021, eq. 1).

    The kernel is [P, P, C, D], as a convolution with stride P has it.
    """

    width: int
    patch_size: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Raises ValueError for an image whose sides do not divide by the patch size."""
        size, (batch, height, width, channels) = self.patch_size, image.shape
        if size < 1 or height % size or width % size:
            raise ValueError(f"an image of {height}×{width} does not divide into patches of {size}×{size}")
        patches = image.reshape(batch, height // size, size, width // size, size, channels)
        return nn.DenseGeneral(
            self.width,
            axis=(-3, -2, -1),
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.lecun_normal(),
            name="projection",
        )(patches.swapaxes(2, 3))


class ConvolutionalPatches(nn.Module):
    """Patches that overlap: 3×3 convolutions with stride 2, each twice as wide as the one before it, behind every inner
    one another with stride 1, and a projection (Xiao et al. 2021, Early Convolutions Help Transformers See Better,
    section 4, the stem of their largest model). From few pictures it learns sooner than one linear map of each patch.

    Its norms are of the batch, as in the paper: LayerNorm makes an empty background as loud as an object on it, and a
    CoCa on drawn scenes took twice as many steps to the same loss. `rows` are those of `BatchNorm`.
    """

    width: int
    patch_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W C"], train: bool = False, rows: Bool[Array, "B"] | None = None
    ) -> Float[Array, "B h w D"]:
        """Raises ValueError for a patch size that is no power of two from 2 on or too large for the width, and for an
        image whose sides do not divide by it."""
        size, (height, width) = self.patch_size, image.shape[1:3]
        halvings = size.bit_length() - 1
        if size < 2 or size != 1 << halvings or self.width % (1 << halvings - 1):
            raise ValueError(f"{halvings} convolutions up to a width of {self.width} make no patches of {size}×{size}")
        if height % size or width % size:
            raise ValueError(f"an image of {height}×{width} does not divide into patches of {size}×{size}")
        x = image
        inner = range(2, halvings)
        strides = [
            (halving, stride) for halving in range(1, halvings + 1) for stride in (2, 1)[: 1 + (halving in inner)]
        ]
        for number, (halving, stride) in enumerate(strides, 1):
            x = Conv(self.width >> halvings - halving, 3, stride, self.dtype, name=f"conv{number}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{number}")(x, train, rows))
        projected: Float[Array, "B h w D"] = nn.Dense(self.width, dtype=self.dtype, name="projection")(x)
        return projected
