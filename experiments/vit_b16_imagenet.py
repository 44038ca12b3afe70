"""ViT-B/16 on ImageNet, by the ViT paper's recipe for training on it alone (Dosovitskiy et al. 2020, table 3).

    jmm plan experiments/vit_b16_imagenet.py --topology v5e:8x8
    jmm train experiments/vit_b16_imagenet.py --workdir DIR --data.path imagenet

`imagenet/train` and `imagenet/val` hold a folder of images for each class. 300 epochs.
`experiments/plans/vit_b16_imagenet.txt` is what the plan prints. Never trained here.
"""

from data_pipelines.classes import ClassFolder
from data_pipelines.preprocess import Preprocess
from jmm.evaluation.classification import Classification
from jmm.experiment import Checkpoint, Experiment, MeshShape, Optimizer
from jmm.models import vit

EPOCH = 1_281_167
"""Images of ImageNet to train on."""
BATCH = 4096


def experiment() -> Experiment:
    """86.6 million parameters."""
    return Experiment(
        name="vit_b16_imagenet",
        model=vit.vit_b(16),
        data=ClassFolder("imagenet", preprocess=Preprocess(image_size=(224, 224))),
        steps=300 * EPOCH // BATCH,
        batch_size=BATCH,
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=10_000, weight_decay=0.3),
        mesh=MeshShape(data=64, fsdp=1),
        checkpoint=Checkpoint(every=5000, best="eval/classification/accuracy"),
        evaluations=(Classification(labels=tuple(map(str, range(1000))), count=5000),),
        evaluate_every=5000,
        log_every=100,
        data_workers=32,
    )
