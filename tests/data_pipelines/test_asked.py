"""Captions as answers."""

from data_pipelines.asked import Asked
from data_pipelines.digits import Digits
from data_pipelines.pipeline import training_batches


def test_the_caption_that_is_seen_is_the_answer():
    data = Asked(Digits(text_length=60), "what is it?")
    example = data.source("train")[3]
    assert (example["prompt"], example["answer"]) == ("what is it?", example["caption"])
    with training_batches(data, 8, 0, threads=0) as batches:
        batch = next(batches)
    preprocess = data.preprocessor()
    texts = [preprocess.tokenizer.decode([i for i in row if i]) for row in batch["text"].tolist()]
    assert all(text.startswith("what is it?") and len(text) > 15 for text in texts)
    assert len({text[11:] for text in texts}) > 4  # as the digits' own random captions
