"""Fine-tunes a published CLIP or SigLIP on your own images in a folder.

    jmm train experiments/finetune.py --workdir runs/tuned --from clip-vit-base-patch32 --data.path photos

`--from` names a folder with config.json, *.safetensors, tokenizer and image processor, as transformers writes it; its
system and its preprocessing take the place of those below. The folder of images is as for experiments/folder.py.
Then `jmm convert runs/tuned tuned --to hf` gives a folder that `from_pretrained` loads.
"""

from data_pipelines.folder import ImageFolder
from jmm.evaluation.retrieval import Retrieval
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import clip


def experiment() -> Experiment:
    """Low rates that leave what is known in place; a moving average of the weights."""
    return Experiment(
        name="finetune",
        model=clip.clip_b32(),
        data=ImageFolder("photos", rotate=0.0, scale=0.1, shift=0.05),
        steps=500,
        batch_size=32,
        optimizer=Optimizer(learning_rate=1e-5, warmup_steps=50, b2=0.98, weight_decay=0.2, average=0.99),
        checkpoint=Checkpoint(every=100, best="eval/retrieval/text_to_image@1"),
        evaluations=(Retrieval(),),
        evaluate_every=100,
    )
