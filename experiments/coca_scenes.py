"""CoCa on drawn scenes, entirely offline: one model captions scenes and finds the text of each, and its combinations of
colour and shape are ones that it has never seen.

    jmm train experiments/coca_scenes.py --workdir runs/coca_scenes

On two CPU cores, with `JAX_NUM_CPU_DEVICES=2` and large pages (README), 18 minutes in all, with 400 held-out scenes, of
which a fifth carry a word, and 100 of them to search (2026-11-23; jax 0.10.2, one seed):

    step   1300  captions/exact 0.3550  bleu4 0.8783  cider 7.8428  recall@1, text to image 1.00, image to text 1.00
    step   2600  captions/exact 0.9375  bleu4 0.9902  cider 9.8585  recall@1, text to image 1.00, image to text 1.00
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
        steps=2600,
        batch_size=32,
        # AdamW alone took 3,600 steps of 64 to 0.945.
        optimizer=Optimizer(
            learning_rate=2e-3,
            schedule="linear",
            warmup_steps=200,
            b2=0.98,
            weight_decay=0.05,
            muon=("blocks/.*kernel$",),
            average=0.998,
        ),
        checkpoint=Checkpoint(every=500),
        evaluations=(Captions(), Retrieval(count=100)),
        evaluate_every=1300,
        data_threads=1,
    )
