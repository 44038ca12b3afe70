"""The smallest experiment that goes through everything: a CLIP of 20,000 parameters on the scans.

    jmm train tests/training/tiny.py --workdir DIR

takes seconds; it learns next to nothing.
"""

from data_pipelines.digits import NAMES, Digits
from data_pipelines.tokenizer import ByteTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.evaluation.zero_shot import ZeroShot
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig


def experiment() -> Experiment:
    """Trains in seconds."""
    data = Digits(text_length=44)
    encoder = TransformerConfig(width=16, depth=2, num_heads=2, mlp_dim=32, dropout=0.1)
    image = vit.ImageTower(encoder, (16, 16), patch_size=8, channels=1)
    text = clip.TextTower(encoder, ByteTokenizer.vocab_size, data.text_length)
    return Experiment(
        name="tiny",
        model=clip.Config(image, text, embed_dim=16),
        data=data,
        steps=12,
        batch_size=16,
        optimizer=Optimizer(warmup_steps=2, average=0.9, weight_decay=0.1),
        checkpoint=Checkpoint(every=4),
        evaluations=(ZeroShot(labels=NAMES, templates=("a handwritten {}",)), Retrieval()),
        evaluate_every=6,
        log_every=1,
    )
