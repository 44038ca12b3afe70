"""A VQGAN makes drawn scenes of 64 ids each, and a critic says what does not look drawn; entirely offline.

    JAX_NUM_CPU_DEVICES=2 jmm train experiments/vqgan_scenes.py --workdir runs/vqgan

On two CPU cores, 9 minutes in all (2026-11-22; jax 0.10.2, one seed), on 400 held-out scenes:

    step   1600  reconstruction/psnr 29.20  usage 1.000  perplexity 878
"""

from data_pipelines.scenes import Scenes
from jmm.evaluation.reconstruction import Reconstruction
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import vqgan

STEPS = 1600


def experiment() -> Experiment:
    """8×8 codes of 32×32 pixels; the critic plays from half way on."""
    data = Scenes("caption", counts=(2,), plain=True, words=0.0, image_size=32)
    return Experiment(
        name="vqgan_scenes",
        model=vqgan.Config(
            (data.image_size, data.image_size),
            levels=vqgan.GridConfig(width=16, multipliers=(1, 2, 4), blocks=1, attention=(), latent=32, groups=8),
            num_codes=1024,
            code_width=16,
            quantizer=vqgan.Following(),
            critic=vqgan.Critic(width=16, layers=2, weight=0.1, start=STEPS // 2),
        ),
        data=data,
        steps=STEPS,
        batch_size=32,
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, b2=0.99, weight_decay=0.0, average=0.998),
        checkpoint=Checkpoint(every=500),
        evaluations=(Reconstruction(),),
        data_threads=1,
    )
