"""checkpoint.py: what was saved comes back bit for bit, what is broken is refused by name, a kill loses nothing."""
import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from nanopref import checkpoint
from nanopref.checkpoint import config_from_json, config_to_json, load_model, load_state, save_model, save_state
from nanopref.errors import UserError
from nanopref.model import Config, Transformer

FIELDS = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(Config(**{**FIELDS, **changes}))


def make_tokenizer():
    return Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3}, unk_token="<pad>"))


def same_bits(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def folder(tmp_path):
    save_model(make_model(), make_tokenizer(), tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"num_labels": 1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, changes, dtype):
    saved = make_model(**changes).to(dtype)
    save_model(saved, make_tokenizer(), tmp_path / "m")
    random_state = torch.get_rng_state()
    loaded, tokenizer = load_model(tmp_path / "m")
    assert same_bits(saved, loaded) and loaded.config == saved.config
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)  # loading a reference must not change the batches drawn
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert load_model(tmp_path / "m", dtype=torch.float64)[0].model["norm"].weight.dtype == torch.float64
    described = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert [described[f"{name}_token"] for name in ("bos", "eos", "pad")] == ["<bos>", "<eos>", "<pad>"]
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not saved.config.tie_word_embeddings)
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": True}])
def test_transformers_loads_what_we_save_and_we_load_what_it_saves(tmp_path, changes):
    """1e-6: the same float32 operations in another order, on logits of size 0.1."""
    transformers = pytest.importorskip("transformers", reason="exchanges model folders with Hugging Face's library")
    model, tokens = make_model(**changes), torch.tensor([[1, 3, 5, 2]])
    save_model(model, make_tokenizer(), tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert (theirs(tokens).logits - model.logits(model(tokens))).abs().max() < 1e-6
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.eos_token_id == 2 and tokenizer.chat_template == checkpoint.CHAT_TEMPLATE
    theirs.save_pretrained(tmp_path / "theirs")
    make_tokenizer().save(str(tmp_path / "theirs" / "tokenizer.json"))
    assert same_bits(load_model(tmp_path / "theirs")[0], model)


def test_transformers_loads_our_reward_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="exchanges model folders with Hugging Face's library")
    model = make_model(tie_word_embeddings=True, num_labels=1)
    save_model(model, make_tokenizer(), tmp_path / "ours")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(theirs.score.weight, model.score.weight)
    theirs.save_pretrained(tmp_path / "theirs")
    make_tokenizer().save(str(tmp_path / "theirs" / "tokenizer.json"))
    assert same_bits(load_model(tmp_path / "theirs")[0], model)


def test_replacing_a_folder_keeps_only_what_is_not_a_checkpoints(folder):
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "training_state.safetensors").write_text("of other weights")
    save_model(make_model(seed=1), make_tokenizer(), folder)
    assert same_bits(load_model(folder)[0], make_model(seed=1))
    assert sorted(os.listdir(folder)) == ["config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json",
                                          "tokenizer_config.json"]
    assert os.listdir(folder.parent) == ["model"]


def kill_at(monkeypatch, number):
    """Makes the number-th change to the file tree raise instead, as if the process had died there."""
    left = [number]

    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)
        return call

    monkeypatch.setattr(checkpoint.os, "replace", dying(os.replace))
    monkeypatch.setattr(checkpoint, "save_file", dying(save_file))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dying(checkpoint.shutil.rmtree))


def test_killed_anywhere_a_save_leaves_a_whole_model_and_the_next_one_works(tmp_path):
    """Kills at every step in turn until a save survives; each time the old or the new model must load, logs intact."""
    seen = set()
    for number in range(1, 100):
        folder = tmp_path / str(number) / "model"
        save_model(make_model(0), make_tokenizer(), folder)
        (folder / "metrics.jsonl").write_text("{}\n")
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_at(monkeypatch, number)
            try:
                save_model(make_model(1), make_tokenizer(), folder)
                break
            except KeyboardInterrupt:
                pass
        model = load_model(folder)[0]
        seen.add((same_bits(model, make_model(1)), folder.exists()))
        assert same_bits(model, make_model(0)) or same_bits(model, make_model(1))
        save_model(make_model(2), make_tokenizer(), folder)
        assert same_bits(load_model(folder)[0], make_model(2)) and os.listdir(folder.parent) == ["model"]
        assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert number < 99 and seen == {(False, True), (False, False), (True, True)}  # before, between, after the renames


def test_truncated_weights_are_refused_at_any_length(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="model.safetensors: damaged or incomplete"):
            load_model(folder)


def test_missing_files_and_pickles_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    weights = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    with pytest.raises(UserError, match="no model.safetensors$"):
        load_model(folder)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="no model.safetensors .*pickle"):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()
    save_file(weights, folder / "model.safetensors")
    load_model(folder)
    for name, text in (("tokenizer.json", "{"), ("config.json", "{"), ("config.json", "[]")):
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: not a"):
            load_model(folder)


def test_wrong_parameters_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")

    def refused(changed, message):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load_model(folder)

    headless = {n: w for n, w in weights.items() if n != "lm_head.weight"}
    refused(headless, r"lm_head.weight: absent in the file, \[11, 8\]")
    refused({**weights, "extra": torch.zeros(3)}, r"extra: \[3\] in the file, absent")
    refused({**weights, "model.norm.weight": torch.zeros(9)}, r"model.norm.weight: \[9\] in the file, \[8\]")


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    Tokenizer(models.WordLevel({str(i): i for i in range(12)}, unk_token="0")).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="12 tokens, but the model has 11"):
        load_model(folder)


def test_config_of_hugging_faces_files():
    raw = config_to_json(Config(**FIELDS))
    assert raw["model_type"] == "llama" and raw["architectures"] == ["LlamaForCausalLM"]
    assert config_to_json(Config(**FIELDS, attention_bias=True))["model_type"] == "qwen2"
    with_new_rope = {**raw, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "head_dim": 4}
    assert config_from_json(with_new_rope).rope_theta == 500.0
    del raw["attention_bias"]
    assert config_from_json({**raw, "model_type": "qwen2"}).attention_bias  # Qwen2's files do not mention it
    for change in ({"model_type": "mistral"}, {"hidden_act": "gelu"}, {"rope_scaling": {"type": "linear"}},
                   {"attention_bias": True}, {"head_dim": 3}, {"mlp_bias": True}, {"use_sliding_window": True},
                   {"rope_parameters": {"rope_type": "yarn"}}):
        with pytest.raises(UserError, match=next(iter(change)).replace("rope_parameters", "rope_type")):
            config_from_json({**raw, **change})
    del raw["hidden_size"]
    with pytest.raises(UserError, match="hidden_size"):
        config_from_json(raw)


def train(model, optimizer, steps):
    for _ in range(steps):
        model.logits(model(torch.tensor([[1, 3, 5]]))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    model, tokenizer = make_model(num_labels=1), make_tokenizer()  # `score` gets no gradient, hence no moments
    optimizer = adamw(model)
    train(model, optimizer, 3)
    save_model(model, tokenizer, tmp_path / "m", training=(optimizer, 3, {"config": "abc", "lr": 0.1}))
    resumed = load_model(tmp_path / "m")[0]
    resumed_optimizer = adamw(resumed)
    assert load_state(tmp_path / "m", resumed_optimizer) == (3, {"config": "abc", "lr": 0.1})
    train(model, optimizer, 3)
    train(resumed, resumed_optimizer, 3)
    assert same_bits(model, resumed)
    without = load_model(tmp_path / "m")[0]
    train(without, adamw(without), 3)
    assert not same_bits(model, without)  # the moments matter, or this test would not notice their loss


def test_a_broken_or_foreign_state_is_refused(folder):
    model = make_model()
    optimizer = adamw(model)
    with pytest.raises(UserError, match="no training_state.safetensors"):
        load_state(folder, optimizer)
    train(model, optimizer, 1)
    save_state(folder, optimizer, 1, {})
    with pytest.raises(UserError, match="another model"):
        load_state(folder, adamw(make_model(hidden_size=12)))
    path = folder / "training_state.safetensors"
    whole = path.read_bytes()
    for length in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="without --resume"):
            load_state(folder, optimizer)
