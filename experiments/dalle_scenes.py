"""A DALL-E draws two objects as a caption says, on the codes of the VQ-VAE of the experiment before.

jmm train experiments/vqvae_scenes.py --workdir runs/vqvae
jmm encode runs/vqvae experiments/dalle_scenes.py --to runs/codes --count 60000
jmm train experiments/dalle_scenes.py --workdir runs/dalle
jmm generate runs/dalle --prompt "a large red circle above a small blue square" --count 16 --to circle.png
"""

from data_pipelines.codes import Codes
from data_pipelines.scenes import Scenes, tokenizer
from jmm.evaluation.drawings import Drawings
from jmm.experiment import Checkpoint, Experiment, Optimizer
from jmm.generation.images import Manner
from jmm.models import dalle

WORDS = 16
CODES = 16
NUM_CODES = 256


def experiment() -> Experiment:
    """Six layers read 16 words and write 16×16 codes."""
    scenes = Scenes("caption", counts=(2,), plain=True, words=0.0, text_length=WORDS)
    return Experiment(
        name="dalle_scenes",
        model=dalle.Config(
            dalle.sandwich(192, 6, 6),
            (CODES, CODES),
            text_vocab=tokenizer().vocab_size + WORDS,
            image_vocab=NUM_CODES,
            text_length=WORDS,
            first_code="text",
            drop_text=0.1,
        ),
        data=Codes("runs/codes", scenes),
        steps=3000,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, b2=0.95, weight_decay=0.05, average=0.998),
        checkpoint=Checkpoint(every=1000),
        evaluations=(Drawings(count=100, manner=Manner(top_p=0.9)),),
        data_threads=1,
    )
