"""How a modality becomes tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


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
