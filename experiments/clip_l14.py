"""CLIP ViT-L/14 at the paper's batch of 32,768 (Radford et al. 2021, tables 18 and 19).

    jmm plan experiments/clip_l14.py --topology v5e:16x16
    jmm train experiments/clip_l14.py --workdir DIR --data.path pairs --data.preprocess.tokenizer.directory tokenizer

`pairs` holds images and a captions.csv, `tokenizer` that of a published CLIP in transformers' layout.
32 epochs of 400 million pairs.
`experiments/plans/clip_l14.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import clip
from jmm.parts.transformer import with_remat


def experiment() -> Experiment:
    """427.6 million parameters."""
    preprocess = Preprocess(
        image_size=(224, 224),
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        text_length=77,
        tokenizer=PretrainedTokenizer("tokenizer"),
    )
    return Experiment(
        name="clip_l14",
        model=with_remat(clip.clip_l14(), "full"),
        data=ImageFolder("pairs", hold_out=1000, rotate=0.0, scale=0.0, shift=0.0, preprocess=preprocess),
        steps=32 * 400_000_000 // 32_768,
        batch_size=32_768,
        optimizer=Optimizer(learning_rate=4e-4, warmup_steps=2000, b2=0.98, eps=1e-6, weight_decay=0.2),
        mesh=MeshShape(data=16, fsdp=16),
        checkpoint=Checkpoint(every=5000),
        evaluations=(Retrieval(count=5000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
