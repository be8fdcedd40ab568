"""sample.py: batching changes nothing, and the tokens drawn have the probabilities they should."""
import math

import pytest
import torch

import nanopref.sample
from nanopref.errors import UserError
from nanopref.model import Config, Transformer
from nanopref.sample import choose, generate

EOS, PAD = 1, 0


@pytest.fixture(scope="module")
def model():
    """Float64 with large weights: the likeliest token is never a near tie, so that rounding cannot flip it."""
    torch.manual_seed(4)
    model = Transformer(Config(13, 16, 24, 2, 4, 2, max_position_embeddings=40)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 13, (n,), generator=generator).tolist()
            for n in torch.randint(1, 12, (count,), generator=generator).tolist()]


def greedy(model, prompt, max_new_tokens):
    """The whole sequence through the model anew for every token: no cache, no padding, no batch."""
    tokens = list(prompt)
    for _ in range(min(max_new_tokens, 40 - len(prompt))):
        tokens.append(model.logits(model(torch.tensor([tokens]))[0, -1]).argmax().item())
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt):]


@pytest.mark.parametrize("max_new_tokens", [1, 9, 100])
def test_batched_greedy_equals_one_by_one(model, max_new_tokens):
    """Covers padding, the cache, dropped rows, several batches, the order of the answers and the end of the context."""
    asked = prompts(40)
    expected = [greedy(model, prompt, max_new_tokens) for prompt in asked]
    answers = generate(model, asked, eos_id=EOS, pad_id=PAD, max_new_tokens=max_new_tokens, temperature=0,
                       batch_size=16)
    assert answers == expected
    if max_new_tokens == 100:  # both ends must occur, or the test has not seen them
        ended = [answer[-1] == EOS for answer in answers]
        assert any(ended) and not all(ended)
        assert all(end or len(p) + len(a) == 40 for end, p, a in zip(ended, asked, answers))


def test_every_query_has_something_to_attend_to(model):
    """Padding included, and after rows were dropped: whether SDPA gives 0 or NaN otherwise depends on its kernel."""
    masks = []
    hook = model.register_forward_pre_hook(lambda module, args: masks.append(args[2]))
    generate(model, prompts(40), eos_id=EOS, pad_id=PAD, temperature=1.5)
    hook.remove()
    assert all(mask.any(-1).all() for mask in masks)
    assert len({len(mask) for mask in masks}) > 1  # finished rows do leave the batch


def test_nothing_follows_eos_and_the_seed_decides(model):
    asked = prompts(30)

    def draw(seed, **changes):
        return generate(model, asked, eos_id=EOS, pad_id=PAD, max_new_tokens=20, temperature=1.5, seed=seed, **changes)

    answers = draw(3)
    assert draw(3) == answers != draw(4)
    assert all(EOS not in answer[:-1] for answer in answers) and any(answer[-1] == EOS for answer in answers)
    assert draw(3, top_p=1e-9) == generate(model, asked, eos_id=EOS, pad_id=PAD, max_new_tokens=20, temperature=0)


def test_first_token_has_the_models_distribution(model):
    """Through `generate` with padded prompts in the batch; bound as in the next test."""
    n, prompt = 8000, [5, 7, 3]
    drawn = generate(model, [prompt] * n + [[2] * 9], eos_id=EOS, pad_id=PAD, max_new_tokens=1, temperature=2, top_p=1)
    counts = torch.bincount(torch.tensor(drawn[:n])[:, 0], minlength=13)
    expected = (model.logits(model(torch.tensor([prompt]))[0, -1]) / 2).softmax(-1)
    assert ((counts / n - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-12).all()


@pytest.mark.parametrize("temperature, top_p, expected", [
    (1, 1, [0.15, 0.5, 0.05, 0.3]),
    (1, 0.79, [0, 5 / 8, 0, 3 / 8]),  # 0.5 and 0.3 are the smallest set that holds 0.79
    (1, 0.81, [15 / 95, 50 / 95, 0, 30 / 95]),  # holding 0.81 takes one token more
    (0.5, 1, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),  # probabilities squared
    (0.5, 0.9, [0, 25 / 34, 0, 9 / 34]),  # temperature first: 0.25 + 0.09 are already 0.93 of 0.365
    (1, 0.5 - 1e-6, [0, 1, 0, 0]), (1, 1e-9, [0, 1, 0, 0]), (0, 1, [0, 1, 0, 0])])
def test_choose_has_exactly_these_probabilities(temperature, top_p, expected):
    """40000 draws: a frequency strays by sqrt(p (1 - p) / n); five of those, exceeded once in 1.7 million (and the seed
    is fixed). A probability of 0 leaves no room at all."""
    n, expected = 40_000, torch.tensor(expected, dtype=torch.float64)
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(n, 4) + 3  # a constant changes nothing
    counts = torch.bincount(choose(logits, temperature, top_p, torch.Generator().manual_seed(0)), minlength=4)
    assert ((counts / n - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-7).all()


def test_ties_and_impossible_tokens():
    """Equal tokens do not enlarge the set; a logit of -inf is never drawn, neither as the first nor the last token."""
    generator = torch.Generator().manual_seed(0)
    equal = torch.zeros(5000, 4)
    assert len(set(choose(equal, 1, 0.5, generator).tolist())) == 2
    assert len(set(choose(equal, 1, 1e-9, generator).tolist())) == 1
    blocked = torch.tensor([-math.inf, 0, -math.inf, 0, -math.inf]).expand(5000, 5)
    assert set(choose(blocked, 1, 1, generator).tolist()) == {1, 3}


def by_sorting(logits, temperature, top_p, generator):
    """`choose` as its docstring says it: the whole vocabulary sorted."""
    probs, tokens = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    cdf = probs.cumsum(-1)
    is_kept = cdf - probs < top_p
    u = torch.rand(len(probs), 1, generator=generator) * cdf.where(is_kept, 0).amax(-1, keepdim=True)
    return tokens.gather(1, torch.searchsorted(cdf, u))[:, 0]


@pytest.mark.parametrize("vocab", [13, 64, 65, 700])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.95, 0.9999])
def test_the_likeliest_tokens_are_enough(vocab, top_p):
    """Peaked rows, whose set is among the likeliest, beside flat ones, whose set is not: the draws of a sort, exactly.
    With logits in bfloat16 many tokens are equal and may stand in any order: then it is the probabilities drawn."""
    logits = torch.randn(400, vocab, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1.2, 400)[:, None]
    mass = (logits / 0.7).softmax(-1).topk(min(64, vocab))[0].sum(-1)
    assert vocab < 700 or top_p != 0.95 or 100 < (mass < top_p).sum() < 300  # both kinds occur
    for logits in (logits, logits.bfloat16().float()):
        drawn, expected = (f(logits, 0.7, top_p, torch.Generator().manual_seed(1)) for f in (choose, by_sorting))
        assert torch.equal(logits.gather(1, drawn[:, None]), logits.gather(1, expected[:, None]))
        is_one_of_many = (logits == logits.gather(1, drawn[:, None])).sum(-1) > 1
        assert torch.equal(drawn[~is_one_of_many], expected[~is_one_of_many])


@pytest.mark.parametrize("top_p", [0.7, 1])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(top_p, monkeypatch):
    """torch.rand gives 0 once in 2^24 draws, and nothing above 1 - 2^-24: too rare for a test that waits for them."""
    logits = torch.tensor([[-math.inf, 2, 0, -math.inf]])
    for u, token in ((0, 1), (1 - 2 ** -24, 1 if top_p == 0.7 else 2)):
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, u))
        assert choose(logits, 1, top_p, None).tolist() == [token]


@pytest.mark.parametrize("temperature, top_p", [(0, 1), (1.5, 0.9), (1.5, 1)])
def test_samples_are_those_of_the_prompt_repeated(model, temperature, top_p, monkeypatch):
    """Draw for draw, also where a batch ends between two samples of a prompt; float64, so that the smaller batch of the
    prompts cannot flip a draw. No batch holds more cached tokens than allowed, and a prompt is computed once."""
    asked, computed, cached = prompts(12), [], []
    monkeypatch.setattr(nanopref.sample, "CACHED_TOKENS", 250)  # some eight rows, so that batches end between samples
    options = dict(eos_id=EOS, pad_id=PAD, max_new_tokens=20, temperature=temperature, top_p=top_p)
    repeated = generate(model, [prompt for prompt in asked for _ in range(3)], **options)

    def see(module, args):
        cached.extend(keys.shape[0] * keys.shape[2] for keys, _ in args[3].buffers.values())
        if args[3].length == 0:
            computed.append(len(args[0]))

    hook = model.register_forward_pre_hook(see)
    answers = generate(model, asked, samples=3, **options)
    hook.remove()
    assert answers == [repeated[i:i + 3] for i in range(0, 36, 3)]
    assert max(cached) <= 250 and len(asked) <= sum(computed) < len(asked) + len(computed)  # twice where split
    assert generate(model, asked, samples=1, **options) == [[answer] for answer in generate(model, asked, **options)]


@pytest.mark.parametrize("changes, message", [({"prompts": [[2], []]}, "prompt 1 has 0 tokens"),
                                              ({"prompts": [[2] * 40]}, "prompt 0 has 40 tokens"),
                                              ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
                                              ({"top_p": 1.1}, "top_p"), ({"samples": 0}, "samples")])
def test_impossible_requests_are_refused(model, changes, message):
    with pytest.raises(UserError, match=message):
        generate(model, **{"prompts": [[2]], "eos_id": EOS, "pad_id": PAD, **changes})


def test_39_tokens_leave_room_for_one_and_no_prompts_give_no_responses(model):
    assert len(generate(model, [[2] * 39], eos_id=EOS, pad_id=PAD)[0]) == 1
    assert generate(model, [], eos_id=EOS, pad_id=PAD) == []
