"""Model folders exchanged with Hugging Face's transformers, both ways: the same logits, rewards, ids, greedy answers.

CLOSE: both compute in float32, here and there in another order. Either is 1e-5 away from the same in float64, on logits
of size 1 to 6: an angle of 100 radians is rounded by 4e-6, and attention and norms pass it on enlarged. Seen: 2e-5.
"""
import itertools
import json
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open

from nanopref.batch import CHOSEN, REJECTED, Example, collate
from nanopref.model import Config, KVCache, rope_periods
from nanopref.reward import rewards
from nanopref.run.checkpoint import load_model, save_model
from nanopref.sample import generate
from nanopref.text import IM_END, encode_prompt, encode_response

transformers = pytest.importorskip("transformers", reason="exchanges model folders with Hugging Face's library")

CLOSE = 1e-4
LENGTH = 100  # of the sequences compared
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # shorter than LENGTH, and short enough for all three regimes
ROPES = [{"rope_theta": theta, "rope_scaling": scaling} for theta in (1e4, 1e6) for scaling in (None, LLAMA3)]
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?\n\n Grüße"},
                {"role": "assistant", "content": "4"}, {"role": "user", "content": " and 3+4?"}]


def theirs(tokenizer, family="Llama", dtype=torch.float32, rope=ROPES[0], **changes):
    """A model made by transformers, every parameter random and large, so that no term is negligible."""
    fields = {"vocab_size": tokenizer.vocab_size + 24, "hidden_size": 64, "intermediate_size": 48,  # rows to spare
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 128, **deepcopy(rope), **tokenizer.ids}  # version 5 writes into them
    config = getattr(transformers, family + "Config")(**{**fields, **changes})
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0, 0.3, generator=generator)
    return model.to(dtype)


def save_theirs(model, tokenizer, folder, **options):
    model.save_pretrained(folder, **options)
    tokenizer.save(folder)
    return folder


def reread(auto_class, folder):
    """transformers' own reading of a folder; nothing in it may be left over or lacking."""
    model, report = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def ids(tokenizer, *shape):
    return torch.randint(4, tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def distance(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("family, kv_heads, tied, rope",
                         list(itertools.product(("Llama", "Qwen2"), (1, 2, 4), (False, True), ROPES)))
@torch.no_grad()
def test_the_same_logits_both_ways(tokenizer, tmp_path, family, kv_heads, tied, rope):
    """Theirs loaded by us: in one pass, in cached pieces, in a right-padded batch. Then saved by us, read by them."""
    their = theirs(tokenizer, family, rope=rope, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    ours, _ = load_model(save_theirs(their, tokenizer, tmp_path / "theirs"))
    tokens = ids(tokenizer, 2, LENGTH)
    expected = their(tokens).logits
    assert distance(ours.logits(ours(tokens)), expected) < CLOSE

    our_cache, their_cache = KVCache(LENGTH), transformers.DynamicCache(config=their.config)
    for piece in tokens.split([60, 1, 1, 30, 8], 1):
        found = ours.logits(ours(piece, cache=our_cache))
        assert distance(found, their(piece, past_key_values=their_cache, use_cache=True).logits) < CLOSE

    is_real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [70]])
    padded = tokens.where(is_real, tokenizer.pad_id)
    batch = their(padded, attention_mask=is_real.long()).logits[is_real]
    assert distance(ours.logits(ours(padded))[is_real], batch) < CLOSE

    save_model(ours, tokenizer, tmp_path / "ours")
    assert distance(reread(transformers.AutoModelForCausalLM, tmp_path / "ours")(tokens).logits, expected) < CLOSE


def test_the_llama3_ropes_above_have_all_three_regimes():
    """Else half of the test above would be empty. The slowdown is 1 for fast pairs, 8 for slow ones."""
    for scaled in ROPES[1::2]:
        sizes = dict(vocab_size=8, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
        after, before = (rope_periods(Config(**sizes, **rope), "cpu", torch.float64)
                         for rope in (scaled, {**scaled, "rope_scaling": None}))
        slowdown = after / before
        assert (slowdown == 1).any() and (slowdown == 8).any() and ((slowdown > 1.01) & (slowdown < 7.9)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family, tied", [("Llama", True), ("Qwen2", False)])
@torch.no_grad()
def test_whatever_the_storage(tokenizer, tmp_path, family, tied, dtype):
    """One file or shards, any float type: read as float32, the same numbers, bit for bit, in either library."""
    their, tokens = theirs(tokenizer, family, dtype=dtype, tie_word_embeddings=tied), ids(tokenizer, 2, LENGTH)
    save_theirs(their, tokenizer, tmp_path / "one")
    save_theirs(their, tokenizer, tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    one, shards = (load_model(tmp_path / name, dtype=torch.float32)[0] for name in ("one", "shards"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), shards.state_dict().values(), strict=True))
    expected = reread(transformers.AutoModelForCausalLM, tmp_path / "shards")(tokens).logits
    assert distance(shards.logits(shards(tokens)), expected) < CLOSE

    stored, _ = load_model(tmp_path / "shards")  # in the type it is stored in, and so saved by us
    save_model(stored, tokenizer, tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}
        assert ("lm_head.weight" in file.keys()) == (not tied)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").dtype == dtype
    assert torch.equal(reread(transformers.AutoModelForCausalLM, tmp_path / "ours")(tokens).logits, expected)


def conversations(tokenizer):
    """Pairs of different lengths, each response ending with the end of its turn."""
    texts = [("2+2?", "4", "I do not know."), ("Say something long about tea, please.", "No.", "Tea is tea, and " * 4),
             ("Hi", "Hello!", "Go away")]
    return [Example(encode_prompt(tokenizer, [{"role": "user", "content": prompt}]),
                    [encode_response(tokenizer, text) for text in responses], [CHOSEN, REJECTED])
            for prompt, *responses in texts]


def padded(folder, rows):
    """A right-padded batch as transformers makes it of ids, by the saved tokenizer's own padding token."""
    their = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    return their.pad({"input_ids": rows}, return_tensors="pt")


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("pad", ["<|pad|>", IM_END])  # SmolLM2 pads with its end of turn: we then save another
@torch.no_grad()
def test_the_same_rewards(tokenizer, tmp_path, family, pad):
    """A language model becomes a reward model. Theirs reads the last token that is not padding: the end of turn, which
    it would miss if the saved padding token were that."""
    their = theirs(tokenizer, family, tie_word_embeddings=True, pad_token_id=tokenizer.tokenizer.token_to_id(pad))
    save_theirs(their, tokenizer, tmp_path / "lm")
    described = tmp_path / "lm" / "tokenizer_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "pad_token": pad}))
    ours, own_tokenizer = load_model(tmp_path / "lm", reward=True)
    torch.nn.init.normal_(ours.score.weight, 0.1, 0.3, generator=torch.Generator().manual_seed(2))
    save_model(ours, own_tokenizer, tmp_path / "rm")

    examples = conversations(own_tokenizer)
    batch = padded(tmp_path / "rm", [e.prompt + response for e in examples for response in e.responses])
    assert (batch["input_ids"][:, -1] == own_tokenizer.pad_id).any() and own_tokenizer.pad_id != own_tokenizer.eos_id
    their = reread(transformers.AutoModelForSequenceClassification, tmp_path / "rm")
    scores = their(**batch).logits  # (R, 1)
    assert distance(rewards(ours, collate(examples)), scores[:, 0]) < CLOSE
    assert scores.std() > 100 * CLOSE  # they do differ

    again, _ = load_model(save_theirs(their, own_tokenizer, tmp_path / "theirs"))  # and back, told by its config alone
    assert again.config == ours.config and torch.equal(again.score.weight, ours.score.weight)


def test_the_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    save_theirs(theirs(tokenizer), tokenizer, tmp_path / "theirs")
    save_model(*load_model(tmp_path / "theirs"), tmp_path / "ours")
    their = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    found = their.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert found == encode_prompt(tokenizer, CONVERSATION)
    assert (their.bos_token_id, their.eos_token_id, their.pad_token_id) == tuple(tokenizer.ids.values())
    assert (their.eos_token, their.pad_token) == (IM_END, "<|pad|>") and len(their) == tokenizer.vocab_size


@torch.no_grad()
def test_the_same_greedy_answers_that_stop_at_the_end_of_turn(tokenizer, tmp_path):
    """A random model never stops by itself: its end-of-turn row of the head is swapped with that of a token it says."""
    model, _ = load_model(save_theirs(theirs(tokenizer), tokenizer, tmp_path / "theirs"))
    prompts = [e.prompt for e in conversations(tokenizer)]
    options = dict(eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=20, temperature=0)
    said = generate(model, prompts, **options)[0][5]
    model.lm_head.weight[[said, tokenizer.eos_id]] = model.lm_head.weight[[tokenizer.eos_id, said]]
    save_model(model, tokenizer, tmp_path / "ours")
    their = reread(transformers.AutoModelForCausalLM, tmp_path / "ours")
    found = generate(model, prompts, **options)
    assert found[0][-1] == tokenizer.eos_id and 1 < len(found[0]) < 20
    for prompt, answer in zip(prompts, found):
        assert their.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0].tolist() == prompt + answer
