"""A RuDOLPH draws what a caption says and says what a picture shows, with one set of weights, on the codes of a VQ-VAE.

jmm train experiments/vqvae_scenes.py --workdir runs/vqvae
jmm encode runs/vqvae experiments/dalle_scenes.py --to runs/codes --count 60000
jmm train experiments/rudolph_scenes.py --workdir runs/rudolph
jmm generate runs/rudolph --prompt "a large red circle above a small blue square" --count 16 --to circle.png
"""

from data_pipelines.codes import Codes
from data_pipelines.mixture import Mixture, Part
from data_pipelines.scenes import Scenes, tokenizer
from data_pipelines.stream import Stream
from jmm.evaluation.captions import Captions
from jmm.evaluation.drawings import Drawings
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.generation.images import Manner
from jmm.models import dalle

WORDS = 16
CODES = 16
NUM_CODES = 256


def experiment() -> Experiment:
    """Six layers read 16 words, write 16×16 codes, and behind them 16 words more."""
    scenes = Scenes("caption", counts=(2,), plain=True, words=0.0, text_length=WORDS, target_length=WORDS)
    codes = Codes("runs/codes", scenes)
    return Experiment(
        name="rudolph_scenes",
        model=dalle.Config(
            dalle.sandwich(192, 6, 6),
            (CODES, CODES),
            text_vocab=tokenizer().vocab_size + WORDS,
            image_vocab=NUM_CODES,
            text_length=WORDS,
            right_length=WORDS,
            first_code="text",
            kernel=7,
            last_kernel=9,
        ),
        data=Mixture((Part("draw", Stream(codes, "draw"), 3.0), Part("tell", Stream(codes, "tell"), 1.0))),
        steps=3000,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.95, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=1000),
        evaluations=(Drawings(count=100, manner=Manner(top_p=0.9)), Captions("tell", 100, max_new_tokens=WORDS - 1)),
        data_threads=1,
    )
