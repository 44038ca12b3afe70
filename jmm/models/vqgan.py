"""VQGAN (Esser et al. 2021, Taming Transformers for High-Resolution Image Synthesis) and its relatives.

    image [B,H,W,C] ─► encoder ─► 1×1 ─► vectors [B,h,w,E] ─► quantiser ─► codes [B,h,w]
                                                                  │ straight through
         image ◄─ convolution ◄─ decoder ◄───────────────── 1×1 ◄─┤
                                    └┄┄┄┄┄ MoVQ: its norms see the codes ┄┘
    critic: a logit for each window of an image, real or made
    image: a network that does not learn, in whose eyes the two images should be alike

Without a critic it is a VQ-VAE (van den Oord et al. 2017) of these networks, with `modulated` MoVQ (Zheng et al. 2022),
the tokenizer of Kandinsky 2.1, and with `Drawn` codes the Gumbel variant, the tokenizer of ruDALL-E. Both players learn
in one step; the gradients of either end at the other.

Inputs: image float32 [B,H,W,C] in [-1, 1].
Outputs: vectors [B,h,w,E] before they are quantised; codes int32 [B,h,w]; image float32 [B,H,W,C], from the codes
alone; of `Drawn` codes code_logits [B,h,w,K] too.
Checked: CompVis/taming-transformers, ai-forever/ru-dalle and ai-forever/Kandinsky-2, outputs, losses and gradients
(tests/models/test_vqgan.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jmm.errors import UserError
from jmm.models.vit import ImageEncoder, ImageTower
from jmm.objectives.adversarial import balance, deceit, hinge
from jmm.objectives.perceptual import perceptual
from jmm.objectives.quantization import Weighted, code_use, divergence_from_uniform, half_cosine, nearest_code
from jmm.parts.autoencoder import Conv, Decoder, Encoder, GridConfig
from jmm.parts.discriminator import PatchDiscriminator
from jmm.parts.pooling import unit
from jmm.parts.quantizers import GumbelQuantizer, MovingAverageQuantizer, VectorQuantizer, straight_through
from jmm.parts.resnet import Stage
from jmm.parts.transformer import Block, unstack
from jmm.protocol import Batch, Loss, Outputs, Variables

__all__ = ["VARIANTS", "VQGAN", "Config", "Critic", "Drawn", "Following", "GridConfig", "Learned", "Perceptual"]


@dataclass(frozen=True)
class Learned:
    """A codebook that learns by its loss."""

    beta: float = 0.25
    """Weight of the term that `weighted` names."""
    weighted: Weighted = "commitment"
    """The paper weighs the commitment; the public code of VQGAN the codebook."""
    unit_length: bool = False
    """Vectors and codes have length 1."""


@dataclass(frozen=True)
class Following:
    """A codebook that follows the vectors as a moving average."""

    beta: float = 0.25
    """Weight of the commitment."""
    unit_length: bool = False
    """Vectors and codes have length 1."""
    decay: float = 0.99
    """Of the average."""
    restart_below: float = 0.03
    """Codes of less than this share of even use start over on vectors of the batch; 0: none does."""


@dataclass(frozen=True)
class Drawn:
    """Codes drawn by logits of the vectors, through the Gumbel-softmax in training."""

    kl_weight: float = 5e-4
    """Weight of the divergence from even use."""
    temperature: float = 1 / 16
    """Of the draw, reached after `temperature_steps`."""
    temperature_steps: int = 100_000
    """Steps in which the temperature falls from 1, along half a cosine."""


@dataclass(frozen=True)
class Critic:
    """The second player."""

    width: int = 64
    """Channels of its first layer."""
    layers: int = 3
    """How often it halves the grid."""
    weight: float = 0.8
    """Of what it says, over what balances its gradient with that of the reconstruction."""
    start: int = 10_000
    """Steps before it plays."""


@dataclass(frozen=True)
class Perceptual:
    """A network that looks at images and does not learn. It is called `image`, as in a ViT or a CLIP, from whose folder
    an experiment's `initial` takes its weights while `fresh` names all others; else they stay random, which is a
    measure too (Amir & Weiss 2021). `Optimizer.freeze` has to hold `^image/`, or weight decay wears them away."""

    tower: ImageTower
    """Every layer of it is compared, and every stage of its convolutions."""
    weight: float = 1.0
    """Of what it sees, beside the distance of the pixels."""


@dataclass(frozen=True)
class Config:
    """Two networks, what stands between them, and a critic."""

    image_size: tuple[int, int] = (256, 256)
    """Height and width of the images of training."""
    channels: int = 3
    """Channels of the images."""
    levels: GridConfig = field(default_factory=GridConfig)
    """Of the encoder and the decoder."""
    num_codes: int = 1024
    """Codes of the vocabulary."""
    code_width: int = 256
    """Channels of a code."""
    quantizer: Learned | Following | Drawn = field(default_factory=Learned)
    """How vectors and codes meet."""
    modulated: bool = False
    """The norms of the decoder see the codes (MoVQ)."""
    distance: Literal["absolute", "squared"] = "absolute"
    """Of the pixels of an image from those of its reconstruction."""
    critic: Critic | None = field(default_factory=Critic)
    """The second player; None: there is none."""
    perceptual: Perceptual | None = None
    """In whose eyes a reconstruction should be like its image, too; None: pixels alone count."""

    def __post_init__(self) -> None:
        """Raises UserError for a tower of other images."""
        seen = self.channels if self.perceptual is None else self.perceptual.tower.channels
        if seen != self.channels:
            raise UserError(f"perceptual.tower looks at images of {seen} channels, these have {self.channels}")

    @property
    def anneals(self) -> bool:
        """Whether it counts its steps: what it learns by depends on them."""
        return self.critic is not None or isinstance(self.quantizer, Drawn)

    @property
    def stride(self) -> int:
        """Pixels of the image a code, along each side."""
        return self.levels.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def build(self, dtype: DTypeLike = jnp.float32) -> "VQGAN":
        """The module, computing in `dtype`."""
        return VQGAN(self, dtype)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image float32 [B,H,W,C]."""
        return {"image": jax.ShapeDtypeStruct((batch_size, *self.image_size, self.channels), jnp.float32)}

    def loss(self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Loss:
        """The reconstruction, in pixels and in the eyes of a network, what the quantiser asks for, and from step
        `start` on what the critic says of the image made, by the weight at which it pulls the last kernel as the
        reconstruction does (section 3.1, equation 7), and the critic's own hinge loss."""
        return self.losses(module, variables, batch, rngs, train=True)

    def losses(
        self, module: nn.Module, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], train: bool
    ) -> Loss:
        """As `loss`; not in training the critic's norms use what they remember."""
        apply: Any = module.apply
        image = batch["image"].astype(jnp.float32)
        steps = variables["annealing"]["steps"] if self.anneals else jnp.zeros((), jnp.int32)
        moving = [name for name in ("codebook", "batch_stats") if name in variables]
        drawing, dropping, restarting = jax.random.split(rngs["dropout"], 3)
        made, updates = apply(
            variables,
            image,
            self._temperature(steps),
            drawing,
            train,
            method="make",
            rngs={"dropout": dropping, "codes": restarting},
            mutable=moving,
        )

        features_of = self._features_of(module, variables)
        true = features_of(image)

        def far(made: jax.Array) -> jax.Array:
            gap = made - image
            pixels = (jnp.abs(gap) if self.distance == "absolute" else jnp.square(gap)).mean()
            return pixels if self.perceptual is None else pixels + self.perceptual.weight * unlike(made)

        def unlike(made: jax.Array) -> jax.Array:
            return perceptual(features_of(made), true)

        metrics = {"reconstruction": far(made.image), "quantization": self._quantization(made)}
        if self.perceptual is not None:
            metrics["perceptual"] = unlike(made.image)
        value = metrics["reconstruction"] + metrics["quantization"]
        if self.critic is not None:
            params = variables["params"]

            def judge(critic: Any, image: jax.Array, moved: Variables) -> tuple[jax.Array, Variables]:
                seen = {**variables, **moved, "params": {**params, "critic": critic}}
                return apply(seen, image, train, method="judge", mutable=["batch_stats"])

            def deceived(made: jax.Array) -> jax.Array:
                return deceit(judge(stop_gradient(params["critic"]), made, {})[0])

            def paint(last: Any) -> jax.Array:
                return apply({**variables, "params": {**params, "last": last}}, made.features, method="paint")

            pulls = jax.vjp(paint, params["last"])[1]
            kernels = [pulls(jax.grad(of)(made.image))[0]["conv"]["kernel"] for of in (far, deceived)]
            plays = (steps >= self.critic.start).astype(jnp.float32)
            of_real, moved = judge(params["critic"], image, {})
            of_made, moved = judge(params["critic"], stop_gradient(made.image), moved)
            updates = {**updates, **moved}
            metrics |= {
                "deceit": deceived(made.image),
                "deceit_weight": self.critic.weight * balance(*kernels),
                "critic": hinge(of_real, of_made),
            }
            value += plays * (metrics["deceit_weight"] * metrics["deceit"] + metrics["critic"])
        metrics = {"loss": value, **metrics, **code_use(made.codes, self.num_codes)}
        if self.anneals:
            updates = {**updates, "annealing": {"steps": steps + 1}}
        return Loss(value, metrics, updates)

    def _features_of(self, module: nn.Module, variables: Variables) -> Callable[[jax.Array], list[jax.Array]]:
        """What every layer of the network that looks says of an image; none of it learns."""
        if self.perceptual is None:
            return lambda image: []
        apply: Any = module.apply
        still = unstack(stop_gradient({name: tree for name, tree in variables.items() if name != "average"}))

        def look(image: jax.Array) -> list[jax.Array]:
            kept = apply(
                still,
                image,
                method="look",
                capture_intermediates=lambda each, method: isinstance(each, Block | Stage) and method == "__call__",
                mutable=["intermediates"],
            )[1]
            return jax.tree.leaves(kept["intermediates"])

        return look

    def _quantization(self, made: "Made") -> Float[Array, ""]:
        """What the quantiser asks for. A codebook that follows learns nothing by it."""
        kind = self.quantizer
        if isinstance(kind, Drawn):
            assert made.logits is not None
            return kind.kl_weight * divergence_from_uniform(made.logits)
        if isinstance(kind, Following):
            return kind.beta * jnp.square(made.vectors - stop_gradient(made.standing)).mean()
        return nearest_code(made.vectors, made.standing, kind.beta, kind.weighted)

    def _temperature(self, steps: Int[Array, ""]) -> Float[Array, ""]:
        kind = self.quantizer
        if not isinstance(kind, Drawn):
            return jnp.ones(())
        return 1 + (kind.temperature - 1) * half_cosine(steps, kind.temperature_steps)


class Made(NamedTuple):
    """What comes of an image."""

    vectors: Float[Array, "B h w E"]
    """Of the encoder."""
    standing: Float[Array, "B h w E"]
    """The codes that stand for them."""
    codes: Int[Array, "B h w"]
    """Their ids."""
    logits: Float[Array, "B h w K"] | None
    """By which codes are drawn."""
    features: Float[Array, "B H W D"]
    """Of the decoder."""
    image: Float[Array, "B H W C"]
    """What the last convolution makes of these."""


class VQGAN(nn.Module):
    """Encoder, quantiser, decoder and critic."""

    config: Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, kind = self.config, self.config.quantizer
        self.encoder = Encoder(config.levels, self.dtype)
        self.before = Conv(config.code_width, 1, self.dtype)
        if isinstance(kind, Drawn):
            self.quantizer: nn.Module = GumbelQuantizer(config.num_codes, config.code_width)
        elif isinstance(kind, Following):
            self.quantizer = MovingAverageQuantizer(config.num_codes, kind.decay, kind.unit_length, kind.restart_below)
        else:
            self.quantizer = VectorQuantizer(config.num_codes, kind.unit_length)
        self.after = Conv(config.levels.latent, 1, self.dtype)
        self.decoder = Decoder(config.levels, self.dtype)
        self.last = Conv(config.channels, dtype=self.dtype)
        if config.critic is not None:
            self.critic = PatchDiscriminator(config.critic.width, config.critic.layers, self.dtype)
        if config.perceptual is not None:
            self.image = ImageEncoder(replace(config.perceptual.tower, pool="none"), self.dtype)
        if config.anneals:
            self.steps = self.variable("annealing", "steps", lambda: jnp.zeros((), jnp.int32))

    def __call__(self, *, image: Float[Array, "B H W C"], train: bool = False) -> Outputs:
        """Gives vectors, codes and the image of the codes; of drawn ones code_logits."""
        if self.is_initializing():
            for player in (self.judge, self.look):
                player(image)
        made = self.make(image, jnp.ones(()), None, False)
        outputs = {"vectors": made.vectors, "codes": made.codes, "image": made.image}
        return outputs if made.logits is None else outputs | {"code_logits": made.logits}

    def make(
        self, image: Float[Array, "B H W C"], temperature: Float[Array, ""], key: jax.Array | None, train: bool
    ) -> Made:
        """All that comes of an image; gradients pass the codes. With a key and in training, codes that are drawn are.

        Raises:
          UserError: the grid of codes does not divide the image.
        """
        vectors = self.encode_vectors(image, train)
        standing, codes, logits = self._quantize(vectors, temperature, key, train)
        drawn = isinstance(self.config.quantizer, Drawn)
        features = self._features(standing if drawn else straight_through(vectors, standing), train)
        return Made(vectors, standing, codes, logits, features, self.paint(features))

    def encode_vectors(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w E"]:
        """Vectors before they are quantised, such as latent diffusion works on.

        Raises:
          UserError: the grid of codes does not divide the image.
        """
        stride, kind = self.config.stride, self.config.quantizer
        if image.shape[1] % stride or image.shape[2] % stride:
            raise UserError(
                f"an image of {image.shape[1]}×{image.shape[2]} does not divide into codes of {stride}×{stride} pixels"
            )
        vectors = self.before(self.encoder(image.astype(self.dtype), train)).astype(jnp.float32)
        return unit(vectors) if not isinstance(kind, Drawn) and kind.unit_length else vectors

    def encode(self, image: Float[Array, "B H W C"]) -> Int[Array, "B h w"]:
        """The nearest codes, or the most probable."""
        return self._quantize(self.encode_vectors(image), jnp.ones(()), None, False)[1]

    def decode_vectors(self, vectors: Float[Array, "B h w E"]) -> Float[Array, "B H W C"]:
        """The image of vectors, quantised or not."""
        return self.paint(self._features(vectors, False))

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W C"]:
        """The image of codes."""
        return self.decode_vectors(self.look_up(codes))

    def look_up(self, codes: Int[Array, "*B h w"]) -> Float[Array, "*B h w D"]:
        """The vectors of codes."""
        vectors: jax.Array = self.quantizer.look_up(
            codes[..., None] if isinstance(self.config.quantizer, Drawn) else codes
        )
        return vectors

    def paint(self, features: Float[Array, "B H W D"]) -> Float[Array, "B H W C"]:
        """The image of the decoder's features."""
        return self.last(features).astype(jnp.float32)

    def judge(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B i j"] | None:
        """The critic's logits: high where the image seems real."""
        return None if self.config.critic is None else self.critic(image, train)

    def look(self, image: Float[Array, "B H W C"]) -> Float[Array, "B N D"] | None:
        """The features of the network in whose eyes images are compared."""
        return None if self.config.perceptual is None else self.image(image)[0]

    def _quantize(
        self, vectors: Float[Array, "B h w E"], temperature: Float[Array, ""], key: jax.Array | None, train: bool
    ) -> tuple[Float[Array, "B h w E"], Int[Array, "B h w"], Float[Array, "B h w K"] | None]:
        """Codes that stand for the vectors, their ids, and the logits of those that are drawn."""
        kind = self.config.quantizer
        if isinstance(kind, Drawn):
            shape = (*vectors.shape[:-1], 1, self.config.num_codes)
            noise = None if key is None or not train else jax.random.gumbel(key, shape)
            standing, ids, logits = self.quantizer(vectors, noise, temperature)
            return standing, ids[..., 0], logits[..., 0, :]
        found = self.quantizer(vectors, train) if isinstance(kind, Following) else self.quantizer(vectors)
        return found.vectors, found.ids, None

    def _features(self, vectors: Float[Array, "B h w E"], train: bool) -> Float[Array, "B H W D"]:
        vectors = vectors.astype(self.dtype)
        return self.decoder(self.after(vectors), vectors if self.config.modulated else None, train)


_MOVQ = GridConfig(128, (1, 2, 2, 4), 2, (3,), 4)

VARIANTS = {
    "vqgan_f16_1024": Config(),
    "vqgan_f16_16384": Config(num_codes=16_384),
    "vqgan_gumbel_f8": Config(
        levels=GridConfig(128, (1, 1, 2, 4), 2, (3,), 256), num_codes=8192, quantizer=Drawn(kl_weight=1e-8)
    ),
    "movq_kandinsky21": Config(levels=_MOVQ, num_codes=16_384, code_width=4, modulated=True),
}
