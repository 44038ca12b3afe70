"""A published folder of a language model is used on strings, and takes its tokenizer along wherever it is written."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import jmm
from tests.arrays import assert_close
from tests.data_pipelines.tokenizer_folders import make_folder

TEXTS = ["hello world", "the quick brown fox jumps over the lazy dog, and: a bird!", "é"]
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40}
LLAMA = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
MODELS = {
    "gpt2": ("gpt2", GPT2),
    "vicuna": ("llama", {**LLAMA, "max_position_embeddings": 64}),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """A whole checkpoint with random weights."""
    kind, sizes = MODELS[request.param]
    path = make_folder(request.param, tmp_path_factory.mktemp("models") / request.param)
    tokenizer = AutoTokenizer.from_pretrained(path)
    marks = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **marks, **sizes))
    model.save_pretrained(path)
    return path


def test_strings_give_the_logits_of_transformers(folder):
    model = jmm.load(folder)
    batch = model.preprocess(texts=TEXTS)
    found = np.asarray(model(**batch)["logits"])
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        length = ids.shape[1]
        np.testing.assert_array_equal(batch["text"][row, :length], ids[0].numpy())
        assert batch["text_mask"][row].sum() == length
        with torch.no_grad():
            assert_close(found[row, :length], theirs(ids).logits[0].numpy())
    assert len(found[0]) < model.preprocess.text_length, "a batch is as long as its longest text needs"


@pytest.mark.parametrize("form", ["hf", "jmm"])
def test_the_tokenizer_goes_along(folder, tmp_path, form):
    source = shutil.copytree(folder, tmp_path / "source")
    model = jmm.load(source)
    expected = model.preprocess(texts=TEXTS)
    jmm.save(model, tmp_path / "written", form)
    shutil.rmtree(source)
    (tmp_path / "written").rename(tmp_path / "moved")
    back = jmm.load(tmp_path / "moved").preprocess(texts=TEXTS)
    for name, each in expected.items():
        np.testing.assert_array_equal(back[name], each)
    if form == "hf":
        ids = AutoTokenizer.from_pretrained(tmp_path / "moved")(TEXTS[1])["input_ids"]
        np.testing.assert_array_equal(expected["text"][1][expected["text_mask"][1]], ids)
