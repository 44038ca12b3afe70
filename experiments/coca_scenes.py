"""CoCa on drawn scenes, entirely offline: one model captions scenes and finds the text of each, and its combinations of
colour and shape are ones that it has never seen.

    jmm train experiments/coca_scenes.py --workdir runs/coca_scenes
"""

from dataclasses import replace

from data_pipelines.scenes import Scenes, tokenizer
from jmm.evaluation.captions import Captions
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import coca
from jmm.models.vit import ImageTower
from jmm.parts.transformer import TransformerConfig


def experiment() -> Experiment:
    """A CoCa of 2.0 million parameters: three layers see, two read, three read and look."""
    scenes = Scenes(text_length=36)
    stack = TransformerConfig(width=128, depth=3, num_heads=4, mlp_dim=384, scan=False)
    size = (scenes.image_size, scenes.image_size)
    return Experiment(
        name="coca_scenes",
        model=coca.Config(
            ImageTower(stack, size, 8, positions="sincos", stages=(1, 1), stage_width=32, pool="none"),
            replace(stack, depth=2),
            replace(stack, cross_attention=True),
            vocab_size=tokenizer().vocab_size,
            context_length=scenes.text_length,
            embed_dim=128,
            pooling="parallel",
            num_queries=64,
            pool_heads=4,
        ),
        data=scenes,
        steps=3000,
        batch_size=64,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.98, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=500),
        evaluations=(Captions(), Retrieval(count=100)),
        evaluate_every=1000,
        data_threads=1,
    )
