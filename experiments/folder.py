"""CLIP on your own images in a folder, from scratch.

    jmm train experiments/folder.py --workdir runs/mine --data.path photos

The folder holds images and a captions.csv or captions.jsonl with `file_name` and `caption`. A few hundred pairs
teach colours and shapes, not the world; every field below can be set on the command line.
"""

from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.tokenizer import ByteTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig

SIZE, LENGTH = 64, 96


def experiment() -> Experiment:
    """A CLIP of 1.9 million parameters on pictures of 64 × 64."""
    image = vit.ImageTower(
        TransformerConfig(width=128, depth=6, num_heads=4, mlp_dim=512, scan=False),
        image_size=(SIZE, SIZE),
        patch_size=8,
        pool="mean",
    )
    text = clip.TextTower(
        TransformerConfig(width=128, depth=3, num_heads=4, mlp_dim=512, scan=False),
        vocab_size=ByteTokenizer.vocab_size,
        context_length=LENGTH,
    )
    return Experiment(
        name="folder",
        model=clip.Config(image, text, embed_dim=128),
        data=ImageFolder("photos", preprocess=Preprocess(image_size=(SIZE, SIZE), text_length=LENGTH)),
        steps=1000,
        batch_size=32,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, weight_decay=0.1, average=0.99),
        checkpoint=Checkpoint(every=250, best="eval/retrieval/text_to_image@1"),
        evaluations=(Retrieval(),),
        evaluate_every=250,
    )
