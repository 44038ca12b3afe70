"""A CLIP that compares drawn scenes of two objects with captions, to choose among a DALL-E's drawings.

    JAX_NUM_CPU_DEVICES=2 jmm train experiments/clip_scenes.py --workdir runs/clip
    jmm generate runs/dalle --prompt "a large red circle above a small blue square" --clip runs/clip --to circle.png

On two CPU cores, 12 minutes beside other work (2026-11-22; jax 0.10.2, one seed); of 400 held-out pairs:

    step   2000  retrieval/text_to_image@1 0.930  @5 1.000  image_to_text@1 0.958  @5 1.000
"""

from data_pipelines.scenes import Scenes, tokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip
from jmm.models.vit import ImageTower
from jmm.parts.transformer import TransformerConfig


def experiment() -> Experiment:
    """Three layers see, behind convolutions; two read."""
    data = Scenes("caption", counts=(2,), plain=True, words=0.0, image_size=32, text_length=16)
    stack = TransformerConfig(width=128, depth=3, num_heads=4, mlp_dim=384, scan=False)
    return Experiment(
        name="clip_scenes",
        model=clip.Config(
            ImageTower(
                stack,
                (data.image_size, data.image_size),
                8,
                positions="sincos",
                stages=(1, 1),
                stage_width=32,
                pool="attention",
            ),
            clip.TextTower(
                TransformerConfig(width=128, depth=2, num_heads=4, mlp_dim=384, scan=False),
                vocab_size=tokenizer().vocab_size,
                context_length=data.text_length,
            ),
            embed_dim=128,
        ),
        data=data,
        steps=2000,
        batch_size=64,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.98, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=500),
        evaluations=(Retrieval(),),
        evaluate_every=500,
        data_threads=1,
    )
