"""CLIP on your own pairs in any layout, from scratch.

    jmm train experiments/own_data.py --workdir runs/mine --data.records.path shards

The path may be a folder with captions.csv, *.tar shards of WebDataset, *.parquet, a dataset that TFDS has prepared or
Hugging Face's datasets has saved, or what `jmm data convert` has written. One pair in ten is held out.
"""

from data_pipelines.own import OwnData
from data_pipelines.preprocess import Preprocess
from data_pipelines.sources.layouts import Found
from data_pipelines.sources.records import Fields
from data_pipelines.tokenizer import ByteTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip, vit
from jmm.parts.transformer import TransformerConfig

SIZE, LENGTH = 64, 96


def experiment() -> Experiment:
    """A CLIP of 1.9 million parameters on pictures of 64 × 64."""
    layers = TransformerConfig(width=128, depth=6, num_heads=4, mlp_dim=512, scan=False)
    image = vit.ImageTower(layers, image_size=(SIZE, SIZE), patch_size=8, pool="mean")
    text = clip.TextTower(
        TransformerConfig(width=128, depth=3, num_heads=4, mlp_dim=512, scan=False),
        vocab_size=ByteTokenizer.vocab_size,
        context_length=LENGTH,
    )
    return Experiment(
        name="own_data",
        model=clip.Config(image, text, embed_dim=128),
        data=OwnData(
            Found("pairs"),
            fields=Fields(needed=("image", "caption")),
            preprocess=Preprocess(image_size=(SIZE, SIZE), text_length=LENGTH),
        ),
        steps=1000,
        batch_size=32,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, weight_decay=0.1, average=0.99),
        checkpoint=Checkpoint(every=250, best="eval/retrieval/text_to_image@1"),
        evaluations=(Retrieval(),),
        evaluate_every=250,
    )
