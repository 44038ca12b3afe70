"""Image GPT reads 1,797 real handwritten scans pixel by pixel, completes them, and knows what they show.

    JAX_NUM_CPU_DEVICES=2 jmm train experiments/image_gpt_digits.py --workdir runs/image_gpt

On two CPU cores, 10 minutes in all (2026-11-22; jax 0.10.2, one seed), on 360 held-out scans:

    step   2000  pixels/bits 2.228  markov_bits 2.647  probe/accuracy of layers 1 to 8
                 0.950 0.958 0.956 0.964 0.975 0.986 0.981 0.978

No label is used in training: the probes of the report are fitted to each layer's features afterwards.
"""

from dataclasses import replace

from data_pipelines.colours import fit_palette
from data_pipelines.digits import Digits
from jmm.evaluation.pixels import NextPixel
from jmm.evaluation.probes import LayerProbes
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import image_gpt

COLOURS = 16


def experiment() -> Experiment:
    """The paper's model at the size of a postage stamp: eight layers, 64 pixels, 16 shades."""
    data = Digits(image_size=8)
    return Experiment(
        name="image_gpt_digits",
        model=image_gpt.Config(
            replace(image_gpt.image_gpt(128, 8, 4).decoder, scan=False),
            (data.image_size, data.image_size),
            channels=1,
            num_codes=COLOURS,
            clusters=fit_palette(data, COLOURS),
        ),
        data=data,
        steps=2000,
        batch_size=32,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.95, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=500),
        evaluations=(NextPixel(), LayerProbes()),
        data_threads=1,
    )
