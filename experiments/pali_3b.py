"""PaLI-3B: captions as the answers to a prompt (Chen et al. 2022, sections 3 and 4.1).

    jmm plan experiments/pali_3b.py --topology v5p:4x4x4
    jmm train experiments/pali_3b.py --workdir DIR --data.captions.path pairs \\
        --data.captions.preprocess.tokenizer.directory tokenizer

`pairs` holds images and a captions.csv, `tokenizer` that of an mT5 in transformers' layout. ViT-G stays as it is, so
that `--initial` should name its weights. `experiments/plans/pali_3b.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.asked import Asked
from data_pipelines.folder import ImageFolder
from data_pipelines.preprocess import Preprocess
from data_pipelines.pretrained import PretrainedTokenizer
from jmm.evaluation.captions import Captions
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import pali
from jmm.parts.transformer import with_remat

PROMPT = "Generate the alt_text in en"


def experiment() -> Experiment:
    """3.1 billion parameters, of which the 1.3 billion of the language model learn."""
    model = with_remat(pali.VARIANTS["pali_3b"], "full")
    preprocess = Preprocess(
        image_size=model.image.image_size,
        text_length=model.text_length,
        target_length=model.target_length,
        tokenizer=PretrainedTokenizer("tokenizer"),
        describe=PROMPT,
    )
    pairs = ImageFolder("pairs", hold_out=1000, rotate=0.0, scale=0.0, shift=0.0, preprocess=preprocess)
    return Experiment(
        name="pali_3b",
        model=model,
        data=Asked(pairs, PROMPT),
        steps=400_000,
        batch_size=4096,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1000, freeze=("^image/",)),
        mesh=MeshShape(data=4, fsdp=16),
        checkpoint=Checkpoint(every=5000),
        evaluations=(Captions(count=1000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
