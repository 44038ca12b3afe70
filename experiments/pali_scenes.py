"""PaLI on drawn scenes, entirely offline: one model captions in three languages, answers questions and reads.

    jmm train experiments/pali_scenes.py --workdir runs/pali_scenes

Every task of the paper's mixture is a prompt (Chen et al. 2022, section 3.2): alt-text, split caption, reading,
questions, the list of objects, which of several are there, and spans left out of a text without a picture.

On two CPU cores after 3,150 of the 6,300 steps, 12 minutes (2026-11-21; jax 0.10.2, one seed; not trained to the end
yet), with 400 held-out scenes a task: captions exact 0.86 in English, 0.72 in German and 0.715 in Russian, words read
0.8675, questions answered 0.56.
"""

from collections.abc import Mapping
from dataclasses import replace

from data_pipelines.mixture import Mixture, Part
from data_pipelines.scene_grammar import LANGUAGES
from data_pipelines.scenes import Scenes, tokenizer
from data_pipelines.tokenizer import BEGIN
from jmm.evaluation.captions import Captions
from jmm.evaluation.questions import Questions
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.models import encoder_decoder, pali, vit
from jmm.parts.transformer import TransformerConfig

TASKS = {
    "caption_en": ("alt_text", "en"),
    "caption_de": ("alt_text", "de"),
    "caption_ru": ("alt_text", "ru"),
    "question": ("question", "en"),
    "read": ("read", "en"),
    "objects": ("objects", "en"),
    "object_question": ("object_question", "en"),
    "split_caption": ("split_caption", "en"),
    "span": ("span", "en"),
}
"""Task and language of each part of the mixture."""

SHARES = {
    "caption_en": 6.0,
    "caption_de": 3.0,
    "caption_ru": 3.0,
    "question": 5.0,
    "read": 2.5,
    "objects": 2.0,
    "object_question": 1.0,
    "split_caption": 0.5,
    "span": 0.5,
}
"""Of the examples. English has more captions, as on the web: with equal shares it had not begun to look at the pictures
after 850 steps, when with more English it had. Answers are learnt behind captions: their loss began to fall when that
of captions was below 0.1, and with three times as many questions no sooner."""

SHAPE = {"text_length": 40, "target_length": 34, "image_optional": True}
"""Of all batches."""

WIDTH = 128


def experiment() -> Experiment:
    """A PaLI of 1.6 million parameters: one layer sees, three read, three write."""
    return Experiment(
        name="pali_scenes",
        model=system(),
        data=mixture(SHARES),
        steps=6300,
        batch_size=32,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200, b2=0.98, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=1000),
        evaluations=(
            *(Captions(part=f"caption_{language}", name=f"caption_{language}") for language in LANGUAGES),
            Questions(part="question", name="question"),
            Questions(part="read", name="read"),
        ),
        evaluate_every=3150,
        data_threads=1,
    )


def mixture(shares: Mapping[str, float]) -> Mixture:
    """All tasks, each with its share of the examples."""
    return Mixture(tuple(Part(name, Scenes(*TASKS[name], **SHAPE), share) for name, share in shares.items()))


def system() -> pali.Config:
    """The image encoder and the language model, of one width."""
    seeing = TransformerConfig(WIDTH, 1, 4, 3 * WIDTH, activation="gelu_tanh", scan=False)
    language = encoder_decoder.t5(WIDTH, 3, 4, 3 * WIDTH)
    # T5's scales go with its optimizer, whose steps are relative to the size of each matrix.
    reading = replace(language.encoder, head_dim=None, attention_scale=None, scan=False)
    return pali.Config(
        vit.ImageTower(seeing, (64, 64), 8, positions="sincos", stages=(1, 1), stage_width=32, pool="none"),
        replace(
            language,
            encoder=reading,
            decoder=replace(reading, depth=3, cross_attention=True),
            vocab_size=tokenizer().vocab_size,
            start_id=BEGIN,
            scaled_head=False,
        ),
        text_length=SHAPE["text_length"],
        target_length=SHAPE["target_length"],
        image_optional=SHAPE["image_optional"],
    )
