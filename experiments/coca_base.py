"""CoCa-Base at the paper's batch of 65,536 (Yu et al. 2022, table 1 and section 4.1).

    jmm plan experiments/coca_base.py --topology v5e:16x16
    jmm train experiments/coca_base.py --workdir DIR --data.path pairs --data.preprocess.tokenizer.directory tokenizer

`pairs` holds images and a captions.csv, `tokenizer` that of 64,000 words in transformers' layout.
AdamW stands in for the paper's Adafactor.
`experiments/plans/coca_base.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import coca
from jmm.parts.transformer import with_remat


def experiment() -> Experiment:
    """388.9 million parameters, and both losses."""
    preprocess = Preprocess(
        image_size=(288, 288),
        text_length=64,
        tokenizer=PretrainedTokenizer("tokenizer"),
    )
    return Experiment(
        name="coca_base",
        model=with_remat(coca.VARIANTS["coca_base"], "full"),
        data=ImageFolder("pairs", hold_out=1000, rotate=0.0, scale=0.0, shift=0.0, preprocess=preprocess),
        steps=500_000,
        batch_size=65_536,
        optimizer=Optimizer(learning_rate=8e-4, warmup_steps=10_000, schedule="linear", weight_decay=0.01),
        mesh=MeshShape(data=16, fsdp=16),
        checkpoint=Checkpoint(every=5000),
        evaluations=(Retrieval(count=5000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
