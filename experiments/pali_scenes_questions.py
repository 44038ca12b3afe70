"""The second stage of PaLI on drawn scenes: what has learnt to caption and to read learns to answer.

    jmm train experiments/pali_scenes.py --workdir runs/pali_scenes
    jmm train experiments/pali_scenes_questions.py --workdir runs/pali_scenes_questions --initial runs/pali_scenes

The tasks are those of the first stage; three examples in five are questions.
"""

from dataclasses import replace

import pali_scenes

from jmm.experiment import Experiment

SHARES = {
    "caption_en": 2.0,
    "caption_de": 2.5,
    "caption_ru": 2.5,
    "question": 18.0,
    "read": 2.0,
    "objects": 1.0,
    "object_question": 2.0,
    "split_caption": 0.5,
    "span": 0.5,
}
"""Of the examples."""


def experiment() -> Experiment:
    """As the first stage, on other examples."""
    first = pali_scenes.experiment()
    return replace(
        first,
        name="pali_scenes_questions",
        data=pali_scenes.mixture(SHARES),
        steps=3600,
        seed=1,
    )
