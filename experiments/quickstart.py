"""CLIP on 1,797 real handwritten scans, entirely offline.

    jmm train experiments/quickstart.py --workdir runs/quickstart

takes 2.2 minutes on two CPU cores, imports, compilation and pictures included. On 360 held-out scans (2026-11-21):

    seed                 0        1        2
    zero-shot accuracy   0.9861   0.9778   0.9889
"""

from data_pipelines.digits import NAMES, TEMPLATES, Digits
from data_pipelines.tokenizer import ByteTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.evaluation.zero_shot import ZeroShot
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig


def experiment() -> Experiment:
    """A CLIP of 0.9 million parameters: four layers see, two read."""
    data = Digits()
    image = vit.ImageTower(
        TransformerConfig(width=128, depth=4, num_heads=4, mlp_dim=384, scan=False),
        image_size=(data.image_size, data.image_size),
        patch_size=4,
        channels=1,
        pool="mean",
    )
    text = clip.TextTower(
        TransformerConfig(width=96, depth=2, num_heads=4, mlp_dim=192, scan=False),
        vocab_size=ByteTokenizer.vocab_size,
        context_length=data.text_length,
    )
    return Experiment(
        name="quickstart",
        model=clip.Config(image, text, embed_dim=128),
        data=data,
        steps=600,
        batch_size=128,
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, weight_decay=0.05, average=0.99),
        checkpoint=Checkpoint(every=150, best="eval/zero_shot/accuracy"),
        evaluations=(
            ZeroShot(labels=NAMES, templates=TEMPLATES),
            Retrieval(queries=("a handwritten seven", "the number three", "a photo of the digit zero")),
        ),
        evaluate_every=150,
        data_threads=1,
    )
