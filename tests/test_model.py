"""model.py against a plain re-derivation, and the properties the rest of the code relies on. All in float64."""
import math

import pytest
import torch

from nanopref.errors import UserError
from nanopref.model import Config, KVCache, Transformer, attend, rope_periods, rope_tables
from nanopref.run.memory import saved_bytes

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
    assert names(num_labels=1) == names(num_labels=1, tie_word_embeddings=True) == base | {"score.weight"}
    assert names(attention_bias=True) == base | {"lm_head.weight", *(layer + f"self_attn.{x}_proj.bias" for x in "qkv")}


def llama3(turns):
    """Heads of 8 and theta 10^4: the pairs have periods 1, 10, 100, 1000. The original context lets the pair of period
    10 turn `turns` times."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 2 * math.pi * 10 * turns}
    return Config(23, 16, 24, 1, 2, rope_theta=10000.0, rope_scaling=scaling)


def test_llama3_periods_by_hand():
    """In the original context the pairs turn 20, 2, 0.2 and 0.02 times. 20 > 4: as it was. 0.2 < 1: 8 times slower.
    2: a third of the way from 1 to 4, so its speed is 1/3 + 2/3 * 1/8 = 5/12 of what it was, and 10 becomes 24."""
    periods = rope_periods(llama3(2), "cpu", torch.float64)
    assert periods.tolist() == pytest.approx([1, 24, 800, 8000], rel=1e-14)
    cos, sin = rope_tables(torch.tensor([[0, 7]]), llama3(2), torch.float64)
    assert cos.shape == sin.shape == (1, 1, 2, 4)
    assert (torch.stack([cos, sin])[:, 0, 0, 0] - torch.tensor([[1.0], [0.0]])).abs().max() == 0
    assert cos[0, 0, 1, 1].item() == pytest.approx(math.cos(7 / 24), rel=1e-14)
    assert sin[0, 0, 1, 1].item() == pytest.approx(math.sin(7 / 24), rel=1e-14)


@pytest.mark.parametrize("border, period", [(1, 80), (4, 10)])
def test_llama3_periods_do_not_jump_between_the_regimes(border, period):
    """The steepest change there is: d period / d turns = 10 * (7/8) / 3 * 8^2 < 200, times a step of 1e-9."""
    for turns in (border - 1e-9, border, border + 1e-9):
        assert rope_periods(llama3(turns), "cpu", torch.float64)[1].item() == pytest.approx(period, abs=2e-7)


def test_checkpointed_blocks_give_the_same_gradient_and_keep_less():
    """The backward pass repeats the same operations on the same numbers: not one bit may differ. Kept are the inputs of
    the 6 blocks and of the final norm, and little of cosines, sines and mask: 8 such inputs in all. Plain, a block
    keeps 18 of that size: of its norms, its attention and its MLP."""
    model, tokens = tiny(num_hidden_layers=6), ids(2, 40)
    mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]

    def step():
        model.zero_grad()
        loss = model.logits(model(tokens, attn_mask=mask)).logsumexp(-1).mean()
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    def kept():
        return saved_bytes(lambda: model(tokens, attn_mask=mask))

    plain, plain_kept = step(), kept()
    model.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, step(), strict=True))
    block_input = tokens.numel() * 16 * 8  # bytes
    assert 7 * block_input <= kept() < 9 * block_input and plain_kept > 90 * block_input


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
                                           ({"vocab_size": "23"}, "vocab_size"), ({"num_labels": -1}, "num_labels"),
                                           ({"rope_theta": None}, "rope_theta"), ({"rms_norm_eps": 0}, "rms_norm_eps")])
def test_impossible_sizes_are_refused_by_name(changes, name):
    with pytest.raises(UserError, match=name):
        tiny(**changes)


def test_expanded_keys_and_values_change_nothing():
    """With and without a mask, forward and backward, to float64 rounding."""
    draw = lambda heads: torch.randn(2, heads, 5, 4, dtype=torch.float64, requires_grad=True)
    q, k, v = draw(6), draw(2), draw(2)
    for mask in (None, torch.rand(2, 1, 5, 5) + torch.eye(5) > 0.5):
        plain, expanded = (attend(q, k, v, mask, mask is None, is_expanded) for is_expanded in (False, True))
        assert (plain - expanded).abs().max() < EXACT
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (plain, expanded))):
            assert (a - b).abs().max() < 1e-11
