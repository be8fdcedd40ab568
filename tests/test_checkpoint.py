"""checkpoint.py: what was saved comes back bit for bit, what is broken is refused by name, a kill loses nothing."""
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanopref.errors import UserError
from nanopref.model import Config, Transformer
from nanopref.reward import RewardModel
from nanopref.run import checkpoint
from nanopref.run.checkpoint import digest, has_model, load_model, load_state, save_model, save_state
from nanopref.run.hf_config import config_from_json, config_to_json
from nanopref.text import ChatTokenizer, encode_prompt, train_tokenizer

SIZES = {"vocab_size": 270, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
         "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
MESSAGES = [{"role": "user", "content": "a cat?"}]


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(Config(**{**SIZES, **changes}))


def make_tokenizer(vocab_size=262) -> ChatTokenizer:
    return train_tokenizer(["the cat the hat the mat that the rat had"], vocab_size)


def same_bits(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def folder(tmp_path):
    save_model(make_model(), make_tokenizer(), tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder, **options):
    """The message with which load_model refuses `folder`: one line, and nothing was written."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError) as error:
        load_model(folder, **options)
    assert sorted(folder.parent.rglob("*")) == before and "\n" not in str(error.value)
    return str(error.value)


def to_shards(folder):
    """Splits model.safetensors in two, as Hugging Face's large models are; returns the path of the index."""
    weights = load_file(folder / "model.safetensors")
    names, index = sorted(weights), {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    os.remove(folder / "model.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"num_labels": 1},
                                     {"rope_theta": 5e5, "rope_scaling": LLAMA3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, changes, dtype):
    saved = make_model(**changes).to(dtype)
    save_model(saved, make_tokenizer(), tmp_path / "m")
    random_state = torch.get_rng_state()
    loaded, tokenizer = load_model(tmp_path / "m")
    assert same_bits(saved, loaded) and loaded.config == saved.config
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)  # loading a reference must not change the batches drawn
    assert tokenizer.tokenizer.to_str() == make_tokenizer().tokenizer.to_str() and tokenizer.ids == make_tokenizer().ids
    assert encode_prompt(tokenizer, MESSAGES) == encode_prompt(make_tokenizer(), MESSAGES)
    assert load_model(tmp_path / "m", dtype=torch.float64)[0].model["norm"].weight.dtype == torch.float64
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        has_head = not saved.config.tie_word_embeddings and not saved.config.num_labels
        assert ("lm_head.weight" in file.keys()) == has_head
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_becomes_a_reward_model(tmp_path, tied):
    """Its body, a new head drawn from the run's seed, no language-model head; a reward model keeps the head it has."""
    model = make_model(tie_word_embeddings=tied).bfloat16()
    save_model(model, make_tokenizer(), tmp_path / "lm")
    torch.manual_seed(7)
    first, _ = load_model(tmp_path / "lm", reward=True)
    torch.manual_seed(7)
    same, other = load_model(tmp_path / "lm", reward=True)[0], load_model(tmp_path / "lm", reward=True)[0]
    assert same_bits(first, same) and not same_bits(first, other) and first.score.weight.dtype == torch.bfloat16
    assert set(first.state_dict()) == set(model.state_dict()) - {"lm_head.weight"} | {"score.weight"}
    body = first.model.state_dict(prefix="model.")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in body.items())
    save_model(first, make_tokenizer(), tmp_path / "rm")
    assert all(same_bits(first, load_model(tmp_path / "rm", reward=asked)[0]) for asked in (False, True))


def test_a_model_with_a_head_per_group_is_not_taken_for_one_judge(tmp_path):
    """To go on from, all its heads are there; asked for one reward, none of them is picked."""
    heads = RewardModel(Config(**SIZES), groups=["a", "b", "c"])
    save_model(heads, make_tokenizer(), tmp_path / "m")
    assert same_bits(load_model(tmp_path / "m")[0], heads)
    message = refusal(tmp_path / "m", reward=True)
    assert f"{tmp_path / 'm'}: 3 reward heads, of the groups a, b, c" in message and "--heads" in message
    assert load_model(tmp_path / "m", reward=True, groups=["x", "y"])[0].groups == ["x", "y"]


def test_shards_are_one_model(folder):
    to_shards(folder)
    assert same_bits(load_model(folder)[0], make_model())


def test_what_other_tools_store_besides_is_left_out(tmp_path):
    """Old Llama files hold the rotary table, and some tied models their head a second time."""
    model = make_model(tie_word_embeddings=True)
    save_model(model, make_tokenizer(), tmp_path / "m")
    head = {"lm_head.weight": model.model["embed_tokens"].weight.detach().clone()}
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(2)}
    save_file({**model.state_dict(), **head, **tables}, tmp_path / "m" / "model.safetensors")
    assert same_bits(load_model(tmp_path / "m")[0], model)
    assert "score.weight" in load_model(tmp_path / "m", reward=True)[0].state_dict()
    head["lm_head.weight"][0, 0] += 1
    save_file({**model.state_dict(), **head}, tmp_path / "m" / "model.safetensors")
    assert "if the head is right, set it to false" in refusal(tmp_path / "m")


def test_replacing_a_folder_keeps_only_what_is_not_a_checkpoints(folder):
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "training_state.safetensors").write_text("of other weights")
    (folder / "chat_template.jinja").write_text("of another tokenizer, and it would go before the one saved")
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
    monkeypatch.setattr(ChatTokenizer, "save", dying(ChatTokenizer.save))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dying(shutil.rmtree))


def test_killed_anywhere_a_save_leaves_a_whole_model_and_the_next_one_works(tmp_path):
    """Kills at every step in turn until a save survives; each time the old or the new model must load, logs intact, and
    with it the training state of just these weights."""
    tokenizer, seen = make_tokenizer(), set()
    models = [make_model(seed) for seed in range(3)]
    optimizers = [adamw(model) for model in models]
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, 1)
    for number in range(1, 100):
        folder = tmp_path / str(number) / "model"
        save_model(models[0], tokenizer, folder, (optimizers[0], 0))
        (folder / "metrics.jsonl").write_text("{}\n")
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_at(monkeypatch, number)
            try:
                save_model(models[1], tokenizer, folder, (optimizers[1], 1))
                break
            except KeyboardInterrupt:
                pass
        assert has_model(folder)
        model = load_model(folder)[0]
        step = load_state(folder, adamw(model))
        seen.add((step, folder.exists()))
        assert same_bits(model, models[step])
        save_model(models[2], tokenizer, folder)
        assert same_bits(load_model(folder)[0], models[2]) and os.listdir(folder.parent) == ["model"]
        assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert number < 99 and seen == {(0, True), (0, False), (1, True)}  # before, between, after the renames


def test_truncated_weights_are_refused_at_any_length(folder):
    def refused_at_any_length(path):
        whole = path.read_bytes()
        for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert f"{path}: damaged or incomplete, download it again" in refusal(folder)
        path.write_bytes(whole)

    refused_at_any_length(folder / "model.safetensors")
    to_shards(folder)
    refused_at_any_length(folder / "model-00002-of-00002.safetensors")
    load_model(folder)


def test_a_broken_index_or_a_missing_shard_is_refused(folder):
    path = to_shards(folder)
    save_file(make_model(1).state_dict(), folder.parent / "x.safetensors")
    whole = json.loads(path.read_text())["weight_map"]
    outside = [{**whole, "lm_head.weight": name} for name in
               ("../x.safetensors", str(folder.parent / "x.safetensors"), "a/x.safetensors", "", 1)]
    for weight_map in (None, [], *outside):
        change_json(path, weight_map=weight_map)
        assert f"{path}: no weight_map from tensors to files of this folder: download it again" in refusal(folder)
    for text in ("{", '["a"]'):
        path.write_text(text)
        assert f"{path}: not a JSON object" in refusal(folder) and "download it again" in refusal(folder)
    path.write_text("{}")
    assert "no weight_map" in refusal(folder)
    path.write_text(json.dumps({"weight_map": whole}))
    os.remove(folder / "model-00001-of-00002.safetensors")
    message = refusal(folder)
    assert "model-00001-of-00002.safetensors: this shard of 2 is missing" in message and "download it again" in message
    path.write_text('{"weight_map": {}}')
    assert "no weight_map" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    os.remove(folder / name)
    assert refusal(folder) == f"{folder}: no {name}: a model folder needs it; download it again"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"", b'{"a": "\xff"}'])
def test_a_file_that_is_not_json_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    assert f"{folder / name}: not " in refusal(folder) and "download it again" in refusal(folder)


def test_a_broken_tokenizer_or_template_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert f"{folder / 'chat_template.jinja'}: not UTF-8 text" in refusal(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert f"{folder / 'tokenizer.json'}: not a tokenizer, download it again" in refusal(folder)


class Trap:
    """What a pickle can do to whoever loads it."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model.bin.index.json"],
                                   ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]])
def test_pickles_are_refused_and_not_read(folder, names):
    os.remove(folder / "model.safetensors")
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Trap(folder / "sprung")))
    assert refusal(folder) == (f"{folder}: no model.safetensors: a .bin is a pickle, which can run any code, and is "
                               "not read; convert it to safetensors first")
    assert not (folder / "sprung").exists()
    shutil.copy(folder / names[-1], folder / "model.safetensors")  # nor under another name
    assert "damaged" in refusal(folder) and not (folder / "sprung").exists()
    pickle.loads((folder / names[-1]).read_bytes())
    assert (folder / "sprung").exists()  # the trap does work


def test_no_folder(tmp_path):
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such folder: check the path"
    assert not has_model(tmp_path / "nowhere")


@pytest.mark.parametrize("change, message", [
    ({"hidden_size": 16}, "hidden_size is 8 in the file, but 16 in config.json"),
    ({"num_hidden_layers": 1}, "num_hidden_layers is 2 in the file, but 1 in config.json"),
    ({"num_hidden_layers": 3}, "num_hidden_layers is 2 in the file, but 3 in config.json"),
    ({"vocab_size": 300}, "vocab_size is 270 in the file, but 300 in config.json"),
    ({"intermediate_size": 2 ** 30}, "in the file, but 1073741824 in config.json"),
    ({"num_hidden_layers": 10 ** 6}, "num_hidden_layers is 2 in the file, but 1000000 in config.json"),  # at once
    ({"model_type": "qwen2", "attention_bias": True}, "self_attn.k_proj.bias: absent in the file, [8] by config.json"),
    ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight, but config.json says"),
    ({"vocab_size": 261}, "tokenizer.json: token ids up to 261, but config.json has vocab_size 261"),
])
def test_a_config_that_contradicts_the_tensors_is_refused(folder, change, message):
    change_json(folder / "config.json", **change)
    refused = refusal(folder)
    assert message in refused and refused.startswith(str(folder))
    if "in config.json" in message or "by config.json" in message:
        assert refused.endswith("they do not belong together, download both again")


def test_a_tokenizer_of_another_model_is_refused(folder):
    """Ids count, not tokens: the embedding may have rows to spare, but every id needs one."""
    save_model(make_model(vocab_size=262), make_tokenizer(262), folder)
    load_model(folder)
    make_tokenizer(263).save(folder)
    assert "they belong to different models, download both again" in refusal(folder)


@pytest.mark.parametrize("change, option", [
    ({"model_type": "mistral"}, "model_type must be llama or qwen2, not 'mistral'"),
    ({"model_type": None}, "model_type"),
    ({"architectures": ["LlamaModel"]}, "architectures"),
    ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}, "num_labels"),
    ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}, "num_labels must be 0 or 1, not 3"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling must be default or llama3, not 'linear'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "'yarn'"),
    ({"rope_scaling": "linear"}, "rope scaling must be an object"),
    ({"rope_scaling": {**LLAMA3, "factor": None}}, "llama3 rope scaling needs a positive factor"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor < high_freq_factor"),
    ({"attention_bias": True}, "attention_bias must be False for llama"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"model_type": "qwen2", "attention_bias": True, "use_sliding_window": True}, "use_sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads = 4, not 16"),
    ({"hidden_size": "8"}, "hidden_size"),
    ({"groups": "ab"}, "groups must be a list of different names, not 'ab'"),
    ({"length_rule": 3}, "length_rule must hold alpha or penalty, and mean"),
    ({"length_rule": {"penalty": float("inf"), "mean": 1}}, "all finite and at least 0"),  # JSON's Infinity
    ({"rope_theta": None}, "rope_theta"), ({"rope_theta": float("nan")}, "rope_theta must be a positive number, not nan"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, not inf"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"), ({"vocab_size": 2 ** 40}, "positive integer below 2^31"),
    ({"hidden_size": 10 ** 400}, "hidden_size must be a positive integer"),
    ({"rope_theta": 10 ** 400}, "rope_theta must be a positive number"),
    ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 2 ** 70}, "num_labels must be 0 or 1"),
    ({"rope_scaling": {**LLAMA3, "factor": float("nan")}}, "llama3 rope scaling needs a positive factor"),
])
def test_what_the_model_does_not_have_is_refused_by_name(folder, change, option):
    change_json(folder / "config.json", **change)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'config.json'}: config: ") and option in message
    assert message.endswith("use a Llama or Qwen2 model without such options")


def test_config_of_hugging_faces_files():
    raw = config_to_json(Config(**SIZES))
    assert raw["model_type"] == "llama" and raw["architectures"] == ["LlamaForCausalLM"]
    assert config_to_json(Config(**SIZES, attention_bias=True))["model_type"] == "qwen2"
    assert config_to_json(Config(**SIZES, num_labels=1))["architectures"] == ["LlamaForSequenceClassification"]
    del raw["num_labels"]  # ours: theirs is told by id2label, or is the default of two
    classifier = {**raw, "architectures": ["LlamaForSequenceClassification"]}
    assert config_from_json({**classifier, "id2label": {"0": "LABEL_0"}}).num_labels == 1
    assert config_from_json(classifier).num_labels == 2
    del raw["attention_bias"]
    assert config_from_json({**raw, "model_type": "qwen2"}).attention_bias  # Qwen2's files do not mention it
    del raw["hidden_size"]
    with pytest.raises(UserError, match="hidden_size"):
        config_from_json(raw)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_weights_that_are_no_floats_are_refused_by_name(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(8).to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "model.safetensors: 'model.norm.weight' is stored as" in refusal(folder)


def test_weights_without_dimensions_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.tensor(1.0)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "model.embed_tokens.weight: [] in the file" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "'model.layers.1.mlp.up_proj.weight' holds NaN or infinite numbers" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_nested_thousands_deep_is_refused(folder, name):
    (folder / name).write_text('{"a": ' * 5000 + "1" + "}" * 5000)
    assert name in refusal(folder)


def test_a_file_too_large_for_what_it_is(folder, monkeypatch):
    monkeypatch.setattr("nanopref.run.checkpoint.LONGEST", 100)
    assert "bytes are too many for such a file" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
                                  "chat_template.jinja", "model.safetensors.index.json", "other.json"])
def test_a_pipe_in_a_model_folder_does_not_hang(folder, name):
    """Whoever opens one waits for somebody to write. Where the file is needed it counts as missing."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name in ("chat_template.jinja", "model.safetensors.index.json", "other.json"):
        load_model(folder)
        assert len(digest(folder)) == 64
    else:
        assert f"no {name}" in refusal(folder)


def test_the_tokenizer_decides_about_special_tokens(folder):
    """SmolLM2's config pads with its end of turn; Llama 3's lists three ends, its template uses one."""
    change_json(folder / "config.json", pad_token_id=3, eos_token_id=[3, 5], bos_token_id=None)
    assert load_model(folder)[0].config == make_model().config


def test_rope_of_both_major_versions():
    """transformers 4 writes rope_theta and rope_scaling ("type" before 4.43), 5 writes rope_parameters with both."""
    raw = {key: value for key, value in config_to_json(Config(**SIZES)).items() if not key.startswith("rope")}
    plain, scaled = Config(**SIZES, rope_theta=500.0), Config(**SIZES, rope_theta=500.0, rope_scaling=LLAMA3)
    old_name = {"type" if key == "rope_type" else key: value for key, value in LLAMA3.items()}
    assert config_from_json(raw).rope_theta == 10000.0
    assert config_from_json({**raw, "rope_theta": 500.0, "rope_scaling": None}) == plain
    assert config_from_json({**raw, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}) == plain
    for scaling in (LLAMA3, old_name):
        assert config_from_json({**raw, "rope_theta": 500.0, "rope_scaling": scaling}) == scaled
    assert config_from_json({**raw, "rope_parameters": {"rope_theta": 500.0, **LLAMA3}}) == scaled


def test_the_digest_is_of_all_that_decides_and_of_nothing_else(folder):
    (folder / "chat_template.jinja").write_text("x")
    to_shards(folder)
    before = digest(folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            assert digest(folder) != before, path
        path.write_bytes(whole)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "training_state.safetensors").write_text("moments")
    (folder / "figure.png").write_text("a curve")
    assert digest(folder) == before == digest(shutil.copytree(folder, folder.with_name("elsewhere")))


def train(model, optimizer, steps):
    for _ in range(steps):
        model.logits(model(torch.tensor([[1, 3, 5]]))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    model, tokenizer = make_model(tie_word_embeddings=True, num_labels=1), make_tokenizer()  # no gradient for `score`
    optimizer = adamw(model)
    train(model, optimizer, 3)
    save_model(model, tokenizer, tmp_path / "m", training=(optimizer, 3))
    resumed = load_model(tmp_path / "m")[0]
    resumed_optimizer = adamw(resumed)
    assert load_state(tmp_path / "m", resumed_optimizer) == 3
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
    save_state(folder, optimizer, 1)
    with pytest.raises(UserError, match="another model"):
        load_state(folder, adamw(make_model(hidden_size=12)))
    path = folder / "training_state.safetensors"
    whole = path.read_bytes()
    for length in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="without --resume"):
            load_state(folder, optimizer)
