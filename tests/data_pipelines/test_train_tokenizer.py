"""Tokenizers learnt from texts: what comes back, what another library reads of them, and sizes that cannot be."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from data_pipelines import train_tokenizer
from data_pipelines.pretrained import PretrainedTokenizer
from data_pipelines.train_tokenizer import train
from jmm.errors import UserError
from tests.data_pipelines.tokenizer_folders import LINES

LONG = 100_000
SIZE = 330
SENTINELS = ["<extra_id_0>", "<extra_id_1>", "<mask>"]
RNG = random.Random(0)
TEXTS = [
    *LINES,
    *(" ".join(RNG.choices([*LINES[0].split(), "red", "ball", "box"], k=8)) for _ in range(200)),
    "two lines\nand a\ttab",
    "x" * 9000,
]
HARD = [
    *(
        "",
        " ",
        "  two  spaces ",
        "hello world",
        "a\nb\r\n\tc",
        "\x00\x01",
        "🦊 ИЖ 日本 ก็ \u200b\ufeff",
        "<0x41>",
        "<s> a </s>",
    ),
    *("<unk><pad>", "<extra_id_0> and <mask>b", "12345", "e\u0301", "ﬁ Ａ"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    for kind in ("unigram", "bpe"):
        train(iter(TEXTS), root / kind, SIZE, kind, SENTINELS)
    return root


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def folder(request, folders):
    return folders / request.param


def spelled(text):
    """Whether a text writes out a mark that this kind of folder looks for, or sentencepiece's own sign."""
    return any(mark in text for mark in ("▁", "<s>", "</s>", "<pad>", "<unk>"))


def kept(kind, text):
    """What comes back of a text: in LLaMA's layout a space before a text stands for the one that every text gets."""
    return text.removeprefix(" ") if kind == "bpe" else text


@given(st.text(max_size=60) | st.text("a <>x0\n", max_size=20))
def test_any_text_comes_back(folders, text):
    text = text.replace("▁", "_")
    for kind in ("unigram", "bpe"):
        tokenizer = PretrainedTokenizer(str(folders / kind))
        ids = tokenizer.encode(text, LONG)
        assert (ids[0], ids[-1]) == (1, 2)
        # The names of roles, written out, are found in LLaMA's layout and left out as marks are.
        if kind == "unigram" or not spelled(text):
            assert tokenizer.decode([*ids, 0, 0]) == kept(kind, text)


def test_hard_texts_come_back(folder):
    tokenizer = PretrainedTokenizer(str(folder))
    for text in HARD:
        if not spelled(text) or folder.name == "unigram":
            assert tokenizer.decode(tokenizer.encode(text, LONG)) == kept(folder.name, text)


def test_ids_are_those_of_sentencepiece(folder):
    # In LLaMA's layout transformers, and we with it, put no space before a text that begins with one or with a mark.
    same = ("",) if folder.name == "unigram" else tuple("abcdefghijklmnopqrstuvwxyzüATe1東")
    ours, theirs = PretrainedTokenizer(str(folder)), SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in [*TEXTS, *HARD]:
        if text.startswith(same) and not spelled(text):
            assert ours.encode(text, LONG) == theirs.encode(text, add_bos=True, add_eos=True), text


def test_byte_pairs_are_read_by_transformers(folders):
    ours, theirs = PretrainedTokenizer(str(folders / "bpe")), AutoTokenizer.from_pretrained(folders / "bpe")
    for text in [*TEXTS, *HARD]:
        assert ours.encode(text, LONG) == theirs(text)["input_ids"], text
    assert (ours.pad_id, ours.end_id, ours.vocab_size) == (theirs.pad_token_id, theirs.eos_token_id, len(theirs))


def test_roles_marks_and_bytes_come_first(folder):
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    assert names[:8] == ["<pad>", "<s>", "</s>", "<unk>", *SENTINELS, "<0x00>"]
    assert names[262] == "<0xFF>" and len(names) == SIZE
    tokenizer = PretrainedTokenizer(str(folder))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.end_id) == (SIZE, 0, 2)
    assert [i for i in tokenizer.encode("a <extra_id_1> b<mask>", LONG) if 4 <= i < 7] == [5, 6]


def test_frequent_words_are_one_piece(folder):
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert pieces.encode("the the", out_type=str) == ["▁the", "▁the"]


def test_a_cut_text_keeps_its_marks(folder):
    tokenizer = PretrainedTokenizer(str(folder))
    ids = tokenizer.encode("hello world " * 50, 8)
    assert len(ids) == 8 and (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.encode("hello", 2) == [1, 2]
    with pytest.raises(UserError, match="needs a length of at least 2, not 1"):
        tokenizer.encode("hello", 1)
    without = PretrainedTokenizer(str(folder), marks=False)
    assert without.encode("the red ball", LONG) == tokenizer.encode("the red ball", LONG)[1:-1]


def test_ids_beside_the_vocabulary_have_no_text(folders):
    tokenizer = PretrainedTokenizer(str(folders / "unigram"))
    assert tokenizer.decode([-1, *tokenizer.encode("red", LONG), SIZE, 5000]) == "red"


def test_the_same_texts_give_the_same_files(folder, tmp_path):
    train(TEXTS, tmp_path / "again", SIZE, folder.name, SENTINELS)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["tokenizer.model", "tokenizer_config.json"]


def test_rare_characters_are_bytes(tmp_path):
    texts = ["a b c d " * 500, "日"]
    train(texts, tmp_path / "some", 265, coverage=0.999)
    train(texts, tmp_path / "all", 266, coverage=1.0)
    assert len(PretrainedTokenizer(str(tmp_path / "some")).encode("日", LONG)) == 2 + 1 + 3
    assert len(PretrainedTokenizer(str(tmp_path / "all")).encode("日", LONG)) == 2 + 1 + 1


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("size", [-1, 0, 100, 264])
def test_too_small(tmp_path, kind, size):
    # 4 roles, 256 bytes, and a, b, c, d and the space.
    with pytest.raises(UserError, match=f"^a vocabulary needs at least 265 tokens for these texts, not {size}$"):
        train(["a b c d"], tmp_path / "new", size, kind)
    assert list(tmp_path.iterdir()) == []
    train(["a b c d"], tmp_path / "new", 265, kind)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_large(tmp_path, kind):
    with pytest.raises(UserError, match=r"^these texts allow a vocabulary of \d+ to \d+ tokens, not 100000$") as caught:
        train(LINES, tmp_path / "new", 100_000, kind)
    assert list(tmp_path.iterdir()) == []
    few, many = [int(word) for word in str(caught.value).split() if word.isdigit()][:2]
    for size in (few, many):
        train(LINES, tmp_path / str(size), size, kind)
        assert PretrainedTokenizer(str(tmp_path / str(size))).vocab_size == size
    for size in (few - 1, many + 1):
        with pytest.raises(UserError, match=f"not {size}$"):
            train(LINES, tmp_path / str(size), size, kind)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text to learn"),
        (["", ""], {}, "no text to learn"),
        (["a b"], {"coverage": 0.0}, "between 0 and 1, not 0.0"),
        (["a b"], {"marks": ["<s>"]}, "marks must differ"),
        (["a b"], {"marks": ["<0x0A>"]}, "marks must differ"),
        (["a b"], {"marks": ["<m>", ""]}, "marks must differ"),
        (["a b"], {"marks": ["<m>", "<m>"]}, "marks must differ"),
    ],
)
def test_texts_that_teach_nothing(tmp_path, texts, options, message):
    with pytest.raises(UserError, match=message):
        train(texts, tmp_path / "new", 300, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_not_written_over(tmp_path):
    train(["a b"], tmp_path / "new", 263)
    before = (tmp_path / "new" / "tokenizer.model").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        train(["c d"], tmp_path / "new", 263)
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == before
    (tmp_path / "empty").mkdir()
    train(["a b"], tmp_path / "empty", 263)


def test_nothing_is_left_of_what_cannot_be_written(tmp_path, monkeypatch):
    def full(self, data):
        if self.suffix == ".json":
            raise OSError(28, "No space left on device")
        return write(self, data)

    write = train_tokenizer.Path.write_bytes
    monkeypatch.setattr(train_tokenizer.Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        train(["a b"], tmp_path / "new", 263)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_its_model(folders, tmp_path):
    settings = json.loads((folders / "unigram" / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"no tokenizer.json, and no tokenizer.model"):
        PretrainedTokenizer(str(tmp_path)).encode("a", 9)
    (tmp_path / "tokenizer.model").write_bytes((folders / "unigram" / "tokenizer.model").read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read"):
        PretrainedTokenizer(str(tmp_path)).vocab_size  # noqa: B018
