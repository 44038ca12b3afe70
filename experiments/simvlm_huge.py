"""SimVLM-Huge at the paper's batch of 4,096 pairs (Wang et al. 2021, section 4.1).

    jmm plan experiments/simvlm_huge.py --topology v5p:4x4x8
    jmm train experiments/simvlm_huge.py --workdir DIR --data.path pairs --data.preprocess.tokenizer.directory tokenizer

`pairs` holds images and a captions.csv, `tokenizer` that of 32,000 words in transformers' layout.
The paper mixes 512 documents of text alone into every batch; these are pairs.
`experiments/plans/simvlm_huge.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.evaluation.captions import Captions
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import simvlm
from jmm.parts.transformer import with_remat


def experiment() -> Experiment:
    """1.6 billion parameters; a prefix of every text is read."""
    preprocess = Preprocess(
        image_size=(224, 224),
        text_length=256,
        tokenizer=PretrainedTokenizer("tokenizer"),
    )
    return Experiment(
        name="simvlm_huge",
        model=with_remat(simvlm.VARIANTS["simvlm_huge"], "full"),
        data=ImageFolder("pairs", hold_out=1000, rotate=0.0, scale=0.0, shift=0.0, preprocess=preprocess),
        steps=1_000_000,
        batch_size=4096,
        optimizer=Optimizer(learning_rate=5e-4, warmup_steps=10_000, schedule="linear", weight_decay=0.01),
        mesh=MeshShape(data=16, fsdp=8),
        checkpoint=Checkpoint(every=5000),
        evaluations=(Captions(count=1000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
