"""model.py against a plain re-derivation, and the properties the rest of the code relies on. All in float64."""
import math

import pytest
import torch

from nanopref.errors import UserError
from nanopref.model import Config, KVCache, Transformer

EXACT = 1e-10  # float64 rounds at 1e-16; a few hundred terms of size 1 leave four orders to spare


def tiny(**changes):
    """A float64 model whose every parameter is random and large, so that no term of the forward pass is negligible."""
    torch.manual_seed(0)
    fields = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 50.0, "max_position_embeddings": 64}
    model = Transformer(Config(**{**fields, **changes})).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    return model


def ids(*shape, seed=1):
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(seed))


def plain_logits(p, tokens, heads, kv_heads, theta, eps):
    """One layer, one position and one head at a time, from the parameters p alone: no SDPA, no masks, no batching."""
    def norm(x, weight):
        return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + eps) * weight

    def linear(x, name):
        return p[name + ".weight"] @ x + p.get(name + ".bias", 0)

    def rope(x, position):
        half, out = len(x) // 2, x.clone()
        for i in range(half):
            angle = position * theta ** (-2 * i / len(x))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    layer, embed = "model.layers.0.", p["model.embed_tokens.weight"]
    keys, values, logits = [], [], []
    for t, token in enumerate(tokens):
        x = embed[token]
        h = norm(x, p[layer + "input_layernorm.weight"])
        q = linear(h, layer + "self_attn.q_proj").chunk(heads)
        keys.append([rope(k, t) for k in linear(h, layer + "self_attn.k_proj").chunk(kv_heads)])
        values.append(linear(h, layer + "self_attn.v_proj").chunk(kv_heads))
        outputs = []
        for head in range(heads):
            shared = head * kv_heads // heads  # neighbouring query heads share one key and value head
            weights = torch.stack([rope(q[head], t) @ k[shared] for k in keys]).div(math.sqrt(len(q[head]))).exp()
            outputs.append(sum(w * v[shared] for w, v in zip(weights / weights.sum(), values)))
        x = x + linear(torch.cat(outputs), layer + "self_attn.o_proj")
        h = norm(x, p[layer + "post_attention_layernorm.weight"])
        gate = linear(h, layer + "mlp.gate_proj")
        x = x + linear(gate / (1 + (-gate).exp()) * linear(h, layer + "mlp.up_proj"), layer + "mlp.down_proj")
        logits.append(p.get("lm_head.weight", embed) @ norm(x, p["model.norm.weight"]))
    return torch.stack(logits)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_the_plain_derivation(bias, tied, kv_heads):
    model = tiny(num_hidden_layers=1, attention_bias=bias, tie_word_embeddings=tied, num_key_value_heads=kv_heads)
    tokens = ids(1, 9)
    expected = plain_logits(model.state_dict(), tokens[0].tolist(), 4, kv_heads, 50.0, 1e-6)
    assert (model.logits(model(tokens))[0] - expected).abs().max() < EXACT


def test_parameter_names_are_hugging_faces():
    def names(**changes):
        return set(tiny(num_hidden_layers=1, **changes).state_dict())

    layer = "model.layers.0."
    base = {"model.embed_tokens.weight", "model.norm.weight", layer + "input_layernorm.weight",
            layer + "post_attention_layernorm.weight", layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight",
            layer + "mlp.down_proj.weight", *(layer + f"self_attn.{x}_proj.weight" for x in "qkvo")}
    assert names(tie_word_embeddings=True) == base
    assert names() == base | {"lm_head.weight"}
    assert names(num_labels=1) == base | {"lm_head.weight", "score.weight"}
    assert names(attention_bias=True) == base | {"lm_head.weight", *(layer + f"self_attn.{x}_proj.bias" for x in "qkv")}


def test_matches_transformers():
    """Theirs computes RoPE angles and RMSNorm in float32 even in float64: 1e-7 per step, 1e-5 after two layers."""
    transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's own forward pass")
    from nanopref.checkpoint import config_from_json, config_to_json
    for bias in (False, True):
        model = tiny(attention_bias=bias)
        config = transformers.AutoConfig.for_model(**config_to_json(model.config))
        theirs = transformers.AutoModelForCausalLM.from_config(config).double()
        theirs.load_state_dict(model.state_dict())
        tokens = ids(2, 30)
        assert (theirs(tokens).logits - model.logits(model(tokens))).abs().max() < 1e-5
        assert config_from_json(theirs.config.to_dict()) == model.config


def test_the_future_does_not_change_the_past():
    model, tokens = tiny(), ids(2, 12)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 23
    before, after = model(tokens), model(changed)
    assert (before[:, :7] - after[:, :7]).abs().max() < EXACT
    assert ((before[:, 7:] - after[:, 7:]).abs().amax(-1) > 1e-3).all()  # every later position does notice


def test_only_relative_positions_matter():
    model, tokens = tiny(), ids(2, 12)
    positions = torch.arange(12)[None]
    assert (model(tokens, positions) - model(tokens, positions + 17)).abs().max() < EXACT
    assert (model(tokens, positions) - model(tokens, positions * 2)).abs().max() > 1e-3


def test_a_packed_row_equals_its_sequences_apart():
    model, first, second = tiny(), ids(1, 5), ids(1, 8, seed=2)
    row = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(5), torch.arange(8)])[None]
    sequence = torch.tensor([0] * 5 + [1] * 8)
    mask = (sequence[:, None] == sequence) & torch.ones(13, 13, dtype=torch.bool).tril()
    packed = model(row, positions, mask[None, None])
    assert (packed - torch.cat([model(first), model(second)], 1)).abs().max() < EXACT
    assert (packed - model(row))[:, 5:].abs().max() > 1e-3  # without mask and restart the second would see the first


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 1, 6], [11]])
def test_cached_pieces_equal_one_pass(cuts):
    model, tokens = tiny(), ids(2, 11)
    cache = KVCache(11)
    pieces = [model(piece, cache=cache) for piece in tokens.split(cuts, 1)]
    assert (torch.cat(pieces, 1) - model(tokens)).abs().max() < EXACT


def test_cache_keeps_the_rows_asked_for():
    model, tokens = tiny(), ids(3, 11)
    cache = KVCache(11)
    model(tokens[:, :10], cache=cache)
    cache.keep(torch.tensor([True, False, True]))
    assert (model(tokens[[0, 2], 10:], cache=cache) - model(tokens)[[0, 2], 10:]).abs().max() < EXACT


def test_bfloat16_loses_only_what_bfloat16_must():
    """bfloat16 rounds each number by up to 2^-9 = 0.002 of it; the hidden states have size 1 and two layers add up
    some dozen roundings of either sign: 0.02. Angles in bfloat16 would be off by 8 radians here, the result by 0.45."""
    torch.manual_seed(0)
    model = Transformer(Config(23, 64, 96, 2, 4, 2, rope_theta=50.0)).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
    tokens, positions = ids(1, 40), torch.arange(4000, 4040)[None]
    exact = model(tokens, positions)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.float()(tokens, positions) - exact).abs().mean() < 0.02
    assert (model.bfloat16()(tokens, positions) - exact).abs().mean() < 0.02


@torch.no_grad()
def test_initial_scale():
    """Sample standard deviations of n normal numbers stray by 1/sqrt(2n): 1% for n = 4608, so 5% is five sigma."""
    torch.manual_seed(0)
    model = Transformer(Config(96, 48, 96, 8, 4, attention_bias=True, num_labels=1))
    layer = model.model["layers"][3]
    assert model.model["embed_tokens"].weight.std() == pytest.approx(0.02, rel=0.05)
    assert layer.mlp.gate_proj.weight.std() == pytest.approx(0.02, rel=0.05)
    assert layer.mlp.down_proj.weight.std() == pytest.approx(0.02 / 4, rel=0.05)  # sqrt(2 * 8 layers) = 4
    assert layer.self_attn.q_proj.bias.abs().max() == 0 and (layer.input_layernorm.weight == 1).all()
    assert model.score(model(torch.zeros(2, 3, dtype=torch.long))).shape == (2, 3, 1)


@pytest.mark.parametrize("changes, name", [({"hidden_size": 18}, "hidden_size 18"),
                                           ({"hidden_size": 12}, "hidden_size 12"),  # heads of 3: no half to rotate
                                           ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
                                           ({"num_hidden_layers": 0}, "num_hidden_layers"),
                                           ({"vocab_size": "23"}, "vocab_size"), ({"num_labels": 2}, "num_labels")])
def test_impossible_sizes_are_refused_by_name(changes, name):
    with pytest.raises(UserError, match=name):
        tiny(**changes)
