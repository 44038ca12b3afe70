"""Tokenizers built from the vocabulary files of checkpoints that have no tokenizer.json.

Each is put together from the parts of the `tokenizers` library that its paper names, and gives the ids that
transformers gives from the same files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_pipelines.settings import Settings

SPACE = "▁"
"""How sentencepiece writes a space."""

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Words, single digits and runs of other signs (Radford et al. 2021, the code beside the paper)."""

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with the sign before them, single digits, runs of other signs and of spaces (Yang et al. 2024)."""

CONTROL, USER_DEFINED = 3, 4
"""Types of sentencepiece's pieces that are found in a text before anything else."""

Roles = Mapping[str, str]
"""The tokens with a role, by name."""


@dataclass(frozen=True)
class Recipe:
    """How one family's tokenizer is made of its files."""

    files: tuple[str, ...]
    """What must lie in the directory."""
    roles: Roles
    """Its tokens with a role, unless the settings name others."""
    make: Callable[[list[Path], Settings, Roles], Tokenizer]
    """The tokenizer without its marks."""
    begin: str | None = None
    """The role of the mark before a text. A setting add_bos_token goes before it."""
    end: str | None = None
    """The role of the mark behind a text. A setting add_eos_token goes before it."""


def build(recipe: Recipe, directory: Path, settings: Settings) -> tuple[Tokenizer, Roles]:
    """The tokenizer of a directory, and its tokens with a role."""
    roles = {**recipe.roles, **{name: token["content"] for name, token in settings.special.items()}}
    tokenizer = recipe.make([directory / name for name in recipe.files], settings, roles)
    for name in (recipe.begin, recipe.end):
        if name and tokenizer.token_to_id(roles[name]) is None:
            raise ValueError(f"its vocabulary lacks {roles[name]}, which stands around every text")
    tokens = [*settings.added.values(), *(settings.special.get(name, _special(roles[name])) for name in roles)]
    for token in [*tokens, *settings.extra]:
        tokenizer.add_tokens([AddedToken(**token)])
    tokenizer.post_processor = _marks(tokenizer, recipe, settings, roles)
    return tokenizer, roles


def _special(content: str) -> dict[str, Any]:
    return {"content": content, "normalized": False, "special": True}


def _marks(tokenizer: Tokenizer, recipe: Recipe, settings: Settings, roles: Roles) -> processors.TemplateProcessing:
    begin = roles.get(recipe.begin or "bos_token") if settings.flag("add_bos_token", recipe.begin is not None) else None
    end = roles.get(recipe.end or "eos_token") if settings.flag("add_eos_token", recipe.end is not None) else None
    marks = [mark for mark in (begin, end) if mark is not None]
    template = [begin, "$A", end]
    return processors.TemplateProcessing(
        single=[each for each in template if each is not None],
        pair=None,
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys(marks)],
    )


def _byte_level(files: list[Path], add_prefix_space: bool, **options: Any) -> Tokenizer:
    vocabulary, merges = models.BPE.read_file(*map(str, files))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2)."""
    return _byte_level(files, settings.flag("add_prefix_space", False))


def _clip(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """Lower-case byte-level BPE whose last letters of words differ from others."""
    tokenizer = _byte_level(files, False, end_of_word_suffix="</w>", unk_token=roles["unk_token"])
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, tokenizer.pre_tokenizer])
    return tokenizer


def _qwen2(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    tokenizer = _byte_level(files, False)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False), use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    return tokenizer


def _bert(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """WordPiece (Devlin et al. 2019, section 3)."""
    vocabulary = models.WordPiece.read_file(str(files[0]))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=roles["unk_token"]))
    accents = settings.values.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=accents if accents is None else bool(accents),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _pieces(file: Path) -> Any:
    """The message of a sentencepiece file (sentencepiece_model.proto)."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(file.read_bytes())
    if not proto.pieces:
        raise ValueError(f"{file.name} holds no pieces")
    return proto


def _add_pieces(tokenizer: Tokenizer, proto: Any) -> Tokenizer:
    """Marks, and what the vocabulary's maker chose, are found in a text first."""
    for piece in proto.pieces:
        if piece.type in (CONTROL, USER_DEFINED):
            token = AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            tokenizer.add_tokens([token])
    return tokenizer


def _unigram(proto: Any, pieces: list[tuple[str, float]], unknown: int) -> Tokenizer:
    """Unigram pieces of words (Kudo 2018), each word behind a space."""
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, False))
    if proto.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return _add_pieces(tokenizer, proto)


def _t5(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """With the marks of left-out spans at the end of the vocabulary, the last first (Raffel et al. 2020, 3.1.4)."""
    proto = _pieces(files[0])
    spans = [f"<extra_id_{i}>" for i in reversed(range(int(settings.values.get("extra_ids", 100))))]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces] + [(span, 0.0) for span in spans]
    tokenizer = _unigram(proto, pieces, 2)
    tokenizer.add_tokens([AddedToken(**_special(span)) for span in reversed(spans)])
    return tokenizer


def _xlm_roberta(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """fairseq's order of the marks in place of sentencepiece's first three pieces; all other ids are one higher."""
    proto = _pieces(files[0])
    marks = [(roles[name], 0.0) for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces[3:]]
    return _unigram(proto, [*marks, *pieces, (roles["mask_token"], 0.0)], 3)


def _llama(files: list[Path], settings: Settings, roles: Roles) -> Tokenizer:
    """BPE of whole texts, a space before the first word; what no piece covers falls apart into bytes (Touvron et al.
    2023, section 2.1)."""
    proto = _pieces(files[0])
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges_of(vocabulary), fuse_unk=True, byte_fallback=True))
    prefix = settings.flag("add_prefix_space", True)
    scheme = ("always" if settings.flag("legacy", False) else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _add_pieces(tokenizer, proto)


def merges_of(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that make up each piece, in the order in which BPE learnt the pieces: that of their ids. A
    sentencepiece file holds the pieces alone."""
    merges = []
    for piece, rank in vocabulary.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(rank, len(a), a, b) for a, b in halves if a in vocabulary and b in vocabulary]
    merges.sort(key=lambda merge: merge[:2])
    return [(a, b) for _, _, a, b in merges]


ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
GPT2_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
QWEN2_ROLES = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
CLIP_ROLES = {**QWEN2_ROLES, "bos_token": "<|startoftext|>"}
T5_ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BPE_FILES = ("vocab.json", "merges.txt")

RECIPES = {
    "Bert": Recipe(("vocab.txt",), BERT_ROLES, _bert, "cls_token", "sep_token"),
    "CLIP": Recipe(BPE_FILES, CLIP_ROLES, _clip, "bos_token", "eos_token"),
    "GPT2": Recipe(BPE_FILES, GPT2_ROLES, _gpt2),
    "Llama": Recipe(("tokenizer.model",), LLAMA_ROLES, _llama, "bos_token"),
    "Qwen2": Recipe(BPE_FILES, QWEN2_ROLES, _qwen2),
    "Roberta": Recipe(BPE_FILES, ROBERTA_ROLES, _gpt2, "cls_token", "sep_token"),
    "T5": Recipe(("spiece.model",), T5_ROLES, _t5, None, "eos_token"),
    "XLMRoberta": Recipe(("sentencepiece.bpe.model",), ROBERTA_ROLES, _xlm_roberta, "bos_token", "eos_token"),
}
"""By the name of the tokenizer in transformers."""
