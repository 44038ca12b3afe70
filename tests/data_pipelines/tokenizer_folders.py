"""Folders with the tokenizer files of each family, trained on a few lines: as published, without tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "über naïve café déjà vu señor",
    "hello world 123 456 hello's it'll we've",
    "This is a photo of a cat.",
    "A dog, and: a bird!",
    "東京 日本 語 hello",
] * 10

LLAMA = {
    **{"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "split_digits": True},
    **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
}
T5 = {"vocab_size": 150, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
XLM_ROBERTA = {"vocab_size": 150, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CLIP = ["<|startoftext|>", "<|endoftext|>"]
END_OF_TEXT = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "__type": "AddedToken"}
IM_START = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}
QWEN2 = {"added_tokens_decoder": {"9999": IM_START}, "truncation_side": "left"}
OPT = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "clip": ({"model_type": "clip"}, None),
    "clip_described": (
        {"model_type": "clip"},
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "eos_token": {**END_OF_TEXT, "__type": "AddedToken"},
        },
    ),
    "gpt2": ({"model_type": "gpt2"}, None),
    "opt": ({"model_type": "opt"}, {"tokenizer_class": "GPT2Tokenizer", **OPT}),
    "bart": ({"model_type": "bart"}, None),
    "roberta": ({"model_type": "roberta"}, {"add_prefix_space": True}),
    "qwen2": (
        {"model_type": "qwen2"},
        {
            "tokenizer_class": "Qwen2TokenizerFast",
            "added_tokens_decoder": {"9999": IM_START},
            "truncation_side": "left",
        },
    ),
    "bert": ({"model_type": "bert"}, None),
    "bert_cased": ({"model_type": "bert"}, {"do_lower_case": False}),
    "t5": ({"model_type": "t5"}, None),
    "mt5": ({"model_type": "mt5"}, {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}),
    "xlm_roberta": ({"model_type": "xlm-roberta"}, None),
    "llama": ({"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
    "vicuna": (
        {"model_type": "llama", "vocab_size": 401},
        {
            **{"tokenizer_class": "LlamaTokenizer", "legacy": True, "pad_token": "<pad>"},
            **{"add_bos_token": True, "add_eos_token": True},
        },
    ),
    "siglip": ({"model_type": "siglip"}, None),
    "siglip_cased": (
        {"model_type": "siglip"},
        {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False, "model_input_names": ["input_ids"]},
    ),
}
"""config.json and tokenizer_config.json of each."""


def make_folder(name: str, folder: Path) -> Path:
    """Writes the files of one of `FAMILIES` into a new folder."""
    config, settings = FAMILIES[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    kind = config["model_type"]
    if kind in ("t5", "mt5", "siglip"):
        more = {"user_defined_symbols": ["<sep>"]} if kind == "mt5" else {}
        sentence_pieces(folder / "spiece.model", **T5, **more)
    elif kind == "xlm-roberta":
        sentence_pieces(folder / "sentencepiece.bpe.model", **XLM_ROBERTA)
    elif kind == "llama":
        sentence_pieces(folder / "tokenizer.model", **LLAMA)
    elif kind == "bert":
        word_pieces(folder)
    elif kind == "clip":
        byte_pairs(folder, CLIP, [line.lower() for line in LINES], end_of_word_suffix="</w>")
    else:
        byte_pairs(folder, ["<|endoftext|>"] if kind in ("gpt2", "qwen2") else ROBERTA, LINES)
    if name == "vicuna":
        (folder / "added_tokens.json").write_text('{"<pad>": 400}')
    return folder


def sentence_pieces(file: Path, **options: Any) -> None:
    """A sentencepiece model of the lines."""
    prefix = str(file.with_suffix(""))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=prefix, minloglevel=2, hard_vocab_limit=False, **options
    )
    Path(f"{prefix}.vocab").unlink()


def byte_pairs(folder: Path, marks: list[str], lines: list[str], **options: str) -> None:
    """vocab.json and merges.txt; every byte is a token, at the end of a word too."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=marks, initial_alphabet=alphabet, show_progress=False, **options
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for letter in sorted(alphabet):
        vocabulary.setdefault(letter + options.get("end_of_word_suffix", ""), len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def word_pieces(folder: Path) -> None:
    """vocab.txt."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=marks, show_progress=False)
    )
    tokenizer.model.save(str(folder))
