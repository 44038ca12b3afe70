"""CoCa on drawn scenes, entirely offline: one model captions scenes and finds the text of each, and its combinations of
colour and shape are ones that it has never seen.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 jmm train experiments/coca_scenes.py --workdir runs/coca_scenes

On two CPU cores, 23 minutes in all (2026-11-21; jax 0.10.2, one seed), with 400 held-out scenes, of which a fifth
carry a word, and 100 of them to search:

    step   1800  captions/exact 0.7025  bleu4 0.9573  cider 9.0873  recall@1, text to image 1.00, image to text 1.00
    step   3600  captions/exact 0.9450  bleu4 0.9894  cider 9.8932  recall@1, text to image 1.00, image to text 1.00
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
        steps=3600,
        batch_size=64,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.98, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=500),
        evaluations=(Captions(), Retrieval(count=100)),
        evaluate_every=1800,
        data_threads=1,
    )
