"""SigLIP B/16 at a batch of 32,768 (Zhai et al. 2023, section 4).

    jmm plan experiments/siglip_b16.py --topology v5e:16x16
    jmm train experiments/siglip_b16.py --workdir DIR --data.path pairs --data.preprocess.tokenizer.directory tokenizer

`pairs` holds images and a captions.csv, `tokenizer` that of a published SigLIP in transformers' layout.
9 billion pairs seen.
`experiments/plans/siglip_b16.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import clip
from jmm.parts.transformer import with_remat


def experiment() -> Experiment:
    """203.2 million parameters."""
    preprocess = Preprocess(
        image_size=(224, 224),
        text_length=64,
        tokenizer=PretrainedTokenizer("tokenizer"),
    )
    return Experiment(
        name="siglip_b16",
        model=with_remat(clip.siglip_base(), "full"),
        data=ImageFolder("pairs", hold_out=1000, rotate=0.0, scale=0.0, shift=0.0, preprocess=preprocess),
        steps=9_000_000_000 // 32_768,
        batch_size=32_768,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=20_000, b2=0.95, weight_decay=1e-4),
        mesh=MeshShape(data=8, fsdp=32),
        checkpoint=Checkpoint(every=5000),
        evaluations=(Retrieval(count=5000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
