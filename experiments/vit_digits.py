"""A ViT classifies 1,797 real handwritten scans.

    jmm train experiments/vit_digits.py --workdir runs/vit

takes under two minutes on two CPU cores and finds 0.9917 of 360 held-out scans (seed 0, 2026-11-21).
"""

from data_pipelines.digits import NAMES, Digits
from jmm.evaluation.classification import Classification
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import vit
from jmm.parts.transformer import TransformerConfig


def experiment() -> Experiment:
    """The paper's recipe at the size of a postage stamp: class token, learned positions, label smoothing."""
    data = Digits()
    tower = vit.ImageTower(
        TransformerConfig(width=96, depth=4, num_heads=4, mlp_dim=192, scan=False),
        image_size=(data.image_size, data.image_size),
        patch_size=4,
        channels=1,
    )
    return Experiment(
        name="vit_digits",
        model=vit.Config(tower, num_classes=len(NAMES), label_smoothing=0.1),
        data=data,
        steps=600,
        batch_size=128,
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, weight_decay=0.05, average=0.99),
        checkpoint=Checkpoint(every=200, best="eval/classification/accuracy"),
        evaluations=(Classification(labels=NAMES),),
        evaluate_every=200,
        data_threads=1,
    )
