"""Tokenizers of checkpoint folders against transformers' AutoTokenizer on the same folders."""

import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from transformers import AutoTokenizer

from data_pipelines.pretrained import PretrainedTokenizer
from data_pipelines.vocabulary import merges_of
from jmm.errors import UserError
from jmm.training.workdir import from_json, to_json
from tests.data_pipelines.tokenizer_folders import FAMILIES, make_folder

LONG = 100_000
MARKS = ["<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "[MASK]", "<extra_id_3>", "<sep>", "<|im_start|>"]
RNG = random.Random(0)
LETTERS = [*"abcdehlo XYZ  .,!?'\"<>/|_▁éüñ\n\t0123日本ИЖ🦊\u0301\u200d\ufe0f\xa0ſΑΣς", *MARKS, "the ", "hello "]
TEXTS = [
    *("", " ", "hello world", "Über naïve café déjà vu", "e\u0301 a\u0308 combining", "🦊 fox 👩‍👩‍👧 family", "..."),
    *("a  b\tc\nd", " leading", "trailing ", "the quick fox " * 300, "x" * 300, "don't we've IT'LL", "12345"),
    *("東京タワー", "ﬁ ligature Ａ", "ß ẞ İ", "ก็ ำ", "\u200b zero \xa0 nbsp", "\x00\x01 control", "a\r\nb", "�"),
    *(f"{mark} a {mark}b" for mark in MARKS),
    *("".join(RNG.choices(LETTERS, k=RNG.randrange(1, 40))) for _ in range(100)),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By family and form: the published files, and what transformers saves of them today."""
    root, made = tmp_path_factory.mktemp("tokenizers"), {}

    def folder(name, form):
        if (name, form) not in made:
            if form == "files":
                made[name, form] = make_folder(name, root / name / form)
            else:
                files = folder(name, "files")
                saved = root / name / form
                AutoTokenizer.from_pretrained(files).save_pretrained(saved)
                (saved / "config.json").write_bytes((files / "config.json").read_bytes())
                made[name, form] = saved
        return made[name, form]

    return folder


# What transformers saves of a legacy LLaMA tokenizer says "legacy" in tokenizer.json only, and it reads it elsewhere.
BOTH = [(name, form) for name in FAMILIES for form in ("files", "saved") if (name, form) != ("vicuna", "saved")]


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")  # theirs, of texts in which it is written out
@pytest.mark.parametrize(("name", "form"), BOTH)
def test_ids_are_those_of_transformers(folders, name, form):
    ours, theirs = PretrainedTokenizer(str(folders(name, form))), AutoTokenizer.from_pretrained(folders(name, form))
    for text in TEXTS:
        for length in (LONG, 9):
            expected = theirs(text, truncation=True, max_length=length)["input_ids"]
            assert ours.encode(text, length) == expected, (text, length)
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert ours.end_id == (theirs.sep_token_id if name.startswith("bert") else theirs.eos_token_id)
    assert ours.pad_id == (theirs.pad_token_id or 0)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        *(("clip", "<|startoftext|>", "<|endoftext|>"), ("bert", "[CLS]", "[SEP]"), ("bart", "<s>", "</s>")),
        *(("xlm_roberta", "<s>", "</s>"), ("t5", None, "</s>"), ("siglip", None, "</s>"), ("vicuna", "<s>", "</s>")),
        *(("llama", "<s>", None), ("opt", "</s>", None)),
    ],
)
def test_a_cut_text_keeps_its_marks(folders, name, first, last):
    folder = folders(name, "files")
    ours, theirs = PretrainedTokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode("hello world " * 50, 8)
    assert len(ids) == 8
    assert (theirs.convert_ids_to_tokens(ids[0]) == first) == (first is not None)
    assert (theirs.convert_ids_to_tokens(ids[-1]) == last) == (last is not None)
    with pytest.raises(UserError, match="needs a length of at least"):
        ours.encode("hello", 0 if name == "llama" else len([mark for mark in (first, last) if mark]) - 1)


def test_a_token_that_the_model_lacks_is_no_padding(folders, tmp_path):
    folder = make_folder("vicuna", tmp_path / "vicuna")
    config = {"model_type": "llama", "vocab_size": 400, "pad_token_id": -1}
    (folder / "config.json").write_text(json.dumps(config))
    assert PretrainedTokenizer(str(folder)).pad_id == 0
    assert PretrainedTokenizer(str(folders("vicuna", "files"))).pad_id == 400


def test_config_names_the_padding_of_a_tokenizer_without(tmp_path):
    folder = make_folder("llama", tmp_path / "llama")
    (folder / "config.json").write_text('{"model_type": "llama", "text_config": {"pad_token_id": 7}}')
    assert PretrainedTokenizer(str(folder)).pad_id == 7


def test_it_travels(folders):
    ours = PretrainedTokenizer(str(folders("clip", "saved")))
    ids = ours.encode("a photo", 9)
    assert pickle.loads(pickle.dumps(ours)).encode("a photo", 9) == ids
    assert from_json(json.loads(json.dumps(to_json(ours))), "tokenizer") == ours


@pytest.mark.parametrize("name", ["bert", "siglip"])
def test_many_threads_at_once(folders, name):
    ours = PretrainedTokenizer(str(folders(name, "files")))
    lengths = [4 + i % 20 for i in range(400)]
    texts = [TEXTS[i % len(TEXTS)] for i in range(400)]
    expected = list(map(ours.encode, texts, lengths))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ours.encode, texts, lengths)) == expected


def test_half_a_surrogate_pair_is_a_question_mark(folders):
    ours = PretrainedTokenizer(str(folders("gpt2", "files")))
    assert ours.encode("a\ud83db", LONG) == ours.encode("a?b", LONG)


def test_truncation_and_padding_of_the_file_are_not_ours(folders, tmp_path):
    theirs = AutoTokenizer.from_pretrained(folders("bert", "saved"))
    theirs("hello", truncation=True, max_length=4, padding="max_length")  # leaves both in the tokenizer
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 4
    ours = PretrainedTokenizer(str(folders("bert", "saved")))
    assert PretrainedTokenizer(str(tmp_path)).encode("hello world " * 9, LONG) == ours.encode("hello world " * 9, LONG)


def test_merges_by_hand():
    vocabulary = {"a": 0, "b": 1, "ab": 2, "aba": 3, "ba": 4}
    assert merges_of(vocabulary) == [("a", "b"), ("a", "ba"), ("ab", "a"), ("b", "a")]


def spoil(folder, file, content):
    path = folder / file
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2] if content is None else content)


@pytest.mark.parametrize(
    ("name", "form", "file", "content", "message"),
    [
        ("clip", "saved", "tokenizer.json", None, "cannot be read"),
        ("clip", "saved", "tokenizer.json", b"{}", "cannot be read"),
        ("clip", "saved", "tokenizer.json", b"\x80\x04K\x01.", "cannot be read"),
        ("clip", "files", "merges.txt", b"one two three\n", "cannot be read"),
        ("clip", "files", "vocab.json", b"[1, 2]", "cannot be read"),
        ("bert", "files", "vocab.txt", b"\xff\xfe", "cannot be read"),
        ("bert", "files", "vocab.txt", b"[UNK]\nb\n", "lacks .CLS., which stands around every text"),
        ("t5", "files", "spiece.model", None, "cannot be read"),
        ("t5", "files", "spiece.model", b"", "holds no pieces"),
        ("siglip", "files", "spiece.model", b"nonsense", "cannot be read"),
        ("llama", "files", "tokenizer.model", b"nonsense", "cannot be read"),
        ("mt5", "files", "tokenizer_config.json", b'{"extra_ids": "many"}', "cannot be read"),
        ("opt", "files", "tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("opt", "files", "tokenizer_config.json", b"[]", "must hold one JSON object"),
        ("opt", "files", "tokenizer_config.json", b'{"add_bos_token": 1}', "add_bos_token .* must be true or false"),
        ("opt", "files", "tokenizer_config.json", b'{"bos_token": 3}', "bos_token is 3; a token must be a string"),
        ("opt", "files", "tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "must map tokens and ids"),
        ("opt", "files", "tokenizer_config.json", b'{"extra_special_tokens": 3}', "must be a list"),
        ("opt", "files", "config.json", b"\xff", "cannot be read as JSON"),
    ],
)
def test_bad_files_are_one_sentence(folders, tmp_path, name, form, file, content, message):
    for path in folders(name, form).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path, file, content)
    with pytest.raises(UserError, match=message) as caught:
        PretrainedTokenizer(str(tmp_path)).encode("hello", 9)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    encode = partial(PretrainedTokenizer(str(tmp_path)).encode, "hello", 9)
    with pytest.raises(UserError, match=r"holds no tokenizer: no tokenizer.json$"):
        encode()
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"no tokenizer.json, and no vocab.json with merges.txt"):
        encode()
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match=r"no tokenizer.json, and no spiece.model"):
        encode()
    with pytest.raises(UserError, match="there is no checkpoint directory"):
        PretrainedTokenizer(str(tmp_path / "nowhere")).encode("hello", 9)


def test_nothing_of_the_directory_is_run(folders, tmp_path):
    for path in folders("clip", "saved").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_file": "/etc/passwd"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    expected = PretrainedTokenizer(str(folders("clip", "saved"))).encode("hello", 9)
    assert PretrainedTokenizer(str(tmp_path)).encode("hello", 9) == expected
