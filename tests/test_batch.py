"""The packed layout against the plain way, in value and in every gradient, and by hand on a tiny batch."""
import random
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from nanopref import batch as nb
from nanopref.batch import CHOSEN, MISMATCHED, REJECTED, Example, batches, collate, step_counts
from nanopref.bench.steps import packed_logps, response_only_logps
from nanopref.logps import at_least_float32, by_role, padded_logps, predictors, score, sequence_logps
from nanopref.losses import LOSSES, knobs, reduce
from nanopref.text import decode, encode_prompt, encode_response

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64 rounds at 1e-16; the layouts add the same terms in other orders


def random_examples(n_responses, seed=0, vocab=380):
    """One example per entry of `n_responses`: prompts of 1 to 9 tokens, responses of 1 to 12."""
    rng = random.Random(seed)
    ids = lambda low, high: [rng.randrange(vocab) for _ in range(rng.randint(low, high))]
    return [Example(ids(1, 9), [ids(1, 12) for _ in range(n)], [k % 3 for k in range(n)]) for n in n_responses]


LAYOUTS = {
    "pairs": [2] * 6,
    "single responses": [1] * 6,
    "four responses": [4] * 3,
    "unpaired and mismatched": [1, 2, 3, 2, 1],
    "one example": [2],
}


@pytest.mark.parametrize("row", [1, 40, 256], ids=["an example per row", "several rows", "one row"])
@pytest.mark.parametrize("n_responses", LAYOUTS.values(), ids=LAYOUTS)
def test_packed_equals_plain_in_value_and_in_every_gradient(tiny_model, monkeypatch, n_responses, row):
    """ROW 1 makes rows as wide as the longest example. The weights tell responses apart, so none can be swapped."""
    monkeypatch.setattr(nb, "ROW", row)
    model, examples = tiny_model(), random_examples(n_responses)
    weights = torch.linspace(1, 2, sum(n_responses), dtype=torch.float64)
    results = []
    for way in (padded_logps, lambda model, examples: sequence_logps(model, collate(examples))):
        logps = way(model, examples)
        results.append((logps.detach(), torch.autograd.grad((weights * logps).sum(), list(model.parameters()))))
    (plain, plain_grads), (packed, packed_grads) = results
    assert_close(packed, plain, **EXACT)
    for a, b in zip(packed_grads, plain_grads):
        assert b.abs().max() > 1e-3  # there is something to compare
        assert_close(a, b, **EXACT)


def test_chunks_under_autocast_give_the_gradient_of_the_whole(tiny_model, monkeypatch):
    """The head's is a float32 sum over chunks of bf16 products: 1e-2 of its norm, bf16 having 8 bits."""
    model, batch, results = tiny_model().float(), collate(random_examples([2] * 6)), []
    for logits in (2 ** 24, 5 * 400):
        monkeypatch.setattr("nanopref.logps.LOGITS", logits)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sequence_logps(model, batch).sum()
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    for whole, chunks in zip(*results):
        assert (whole - chunks).norm() < 2e-2 * whole.norm()


def test_no_more_than_LOGITS_numbers_are_made_at_once(tiny_model, monkeypatch):
    """Whatever a batch holds, its logits are never all in memory."""
    sizes, original = [], at_least_float32
    monkeypatch.setattr("nanopref.logps.LOGITS", 2000)
    monkeypatch.setattr("nanopref.logps.at_least_float32", lambda x: sizes.append(x.numel()) or original(x))
    sequence_logps(tiny_model(), collate(random_examples([2] * 6))).sum().backward()
    assert len(sizes) > 10 and max(sizes) <= 2000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("logps_of", [packed_logps, response_only_logps, lambda model, examples: sequence_logps(
    model, collate(examples))], ids=["no padding", "response-only head", "shared prompt"])
def test_every_step_of_the_benchmarks_ladder_equals_the_plain_way(tiny_model, logps_of, dtype):
    """In float32 a gradient is a sum of rounded terms in another order: 1e-4 of its norm."""
    model, examples, results = tiny_model().to(dtype), random_examples([2] * 6), []
    for way in (padded_logps, logps_of):
        logps = way(model, examples)
        weights = torch.linspace(1, 2, 12, dtype=dtype)
        grads = torch.autograd.grad((weights * logps).sum(), list(model.parameters()))
        results.append((logps.detach(), torch.cat([grad.flatten() for grad in grads])))
    (plain, plain_grad), (fast, fast_grad) = results
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    assert (fast - plain).norm() < bound * plain.norm() and (fast_grad - plain_grad).norm() < bound * plain_grad.norm()


def test_rows_are_filled(monkeypatch):
    """30 pairs of at most 33 tokens, rows of 100: first-fit, longest first, fills all but the last to nine tenths."""
    monkeypatch.setattr(nb, "ROW", 100)
    batch = collate(random_examples([2] * 30))
    filled = (batch.example >= 0).float().mean(1)
    assert batch.input_ids.shape[1] <= 100 and filled.sort().values[1:].min() > 0.9


def test_hand_worked_batch():
    """A single response, prompt 10, response 11 2, and a pair, prompt 5 6, chosen 7 8 2, rejected 9 2. The longer
    example comes first in the row (T = 10); predictors, targets and lengths keep the order of the examples."""
    batch = collate([Example([10], [[11, 2]], [CHOSEN]), Example([5, 6], [[7, 8, 2], [9, 2]], [CHOSEN, REJECTED],
                                                                 ref_logps=[-3.0, -4.0])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2, 9, 2, 10, 11, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2]]
    assert batch.example.tolist() == [[1] * 7 + [0] * 3]
    assert batch.segment.tolist() == [[0, 0, 1, 1, 1, 2, 2, 0, 1, 1]]
    assert predictors(batch).tolist() == [7, 8, 1, 2, 3, 1, 5]  # both 7 and 9 are predicted at the prompt's last token
    assert batch.target.tolist() == [11, 2, 7, 8, 2, 9, 2]
    assert batch.response.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch.lengths.tolist() == [2, 3, 2] and batch.roles.tolist() == [CHOSEN, CHOSEN, REJECTED]
    assert batch.ref_logps[0].isnan() and batch.ref_logps[1:].tolist() == [-3.0, -4.0] and batch.n_examples == 2
    mask = ["1.........", "11........", "111.......", "1111......", "11111.....",
            "11...1....", "11...11...", ".......1..", ".......11.", ".......111"]
    assert ["".join(".1"[seen] for seen in line) for line in batch.attn_mask()[0, 0].tolist()] == mask


def test_the_order_of_the_examples_does_not_matter(tiny_model):
    model, examples = tiny_model(), random_examples([2] * 6)
    logps = sequence_logps(model, collate(examples)).view(6, 2)
    order = [4, 0, 5, 2, 1, 3]
    assert_close(sequence_logps(model, collate([examples[i] for i in order])).view(6, 2), logps[order], **EXACT)


def test_what_stands_in_the_padding_does_not_matter(tiny_model, monkeypatch):
    """Bit for bit: no real token attends to padding."""
    monkeypatch.setattr(nb, "ROW", 40)
    model, batch = tiny_model(), collate(random_examples([2] * 6))
    padding = batch.example < 0
    assert padding.any()
    changed = replace(batch, input_ids=batch.input_ids.where(~padding, 7))
    assert torch.equal(sequence_logps(model, batch), sequence_logps(model, changed))


def test_targets_decode_to_the_responses_and_end_with_eos(tokenizer):
    texts = [["It is 7.", "No."], ["Paris, naïvely 👩‍👩‍👧 said.", "Rome"]]
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What is 3 plus 4?"}])
    batch = collate([Example(prompt, [encode_response(tokenizer, t) for t in pair], [CHOSEN, REJECTED])
                     for pair in texts])
    eos = tokenizer.eos_id
    for k, text in enumerate(sum(texts, [])):
        ids = batch.target[batch.response == k].tolist()
        assert decode(tokenizer, ids) == text and ids.count(eos) == 1 and ids[-1] == eos


def test_by_role_keeps_the_order_of_the_examples():
    batch = collate([Example([1], [[2], [3, 3], [4]], [CHOSEN, REJECTED, MISMATCHED], [-1.0, -2.0, -3.0]),
                     Example([1], [[5, 5, 5]], [REJECTED], [-4.0])])
    w, l, kl = by_role(batch, torch.tensor([10.0, 20.0, 30.0, 40.0])).values()
    assert [s.logp.tolist() for s in (w, l, kl)] == [[10.0], [20.0, 40.0], [30.0]]
    assert [s.ref_logp.tolist() for s in (w, l, kl)] == [[-1.0], [-2.0, -4.0], [-3.0]]
    assert [s.length.tolist() for s in (w, l, kl)] == [[1], [2, 3], [1]]


@pytest.mark.parametrize("name", ["sft", "dpo", "cpo", "orpo"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(tiny_model, name):
    """Micro-batches of 1, 2 and 3 examples of unequal lengths, divided by the whole step's counts. The mean of their
    means, the usual mistake, is off by more than a per cent."""
    model, loss = tiny_model(), LOSSES[name]
    reference = tiny_model(seed=1)
    examples = random_examples([2 if "l" in loss.inputs else 1] * 6)
    examples = [replace(e, ref_logps=ref) for e, ref in zip(examples, score(reference, examples))]

    def gradient(chunks, own_counts=False):
        value = 0
        for chunk in chunks:
            part = collate(chunk)
            seqs = by_role(part, sequence_logps(model, part))
            out = loss.fn(*(seqs[i] for i in loss.inputs), **knobs(name))
            value = value + reduce(out, *step_counts(chunk if own_counts else sum(chunks, []), loss.pairs))
        value = value / len(chunks) if own_counts else value
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])

    chunks = [examples[:1], examples[1:3], examples[3:]]
    whole = gradient([examples])
    assert_close(gradient(chunks), whole, **EXACT)
    assert (gradient(chunks, own_counts=True) - whole).norm() > 0.01 * whole.norm()


def test_step_counts_by_hand():
    """A pair whose chosen response has 1 token, 2 chosen tokens by themselves, a lone rejected one."""
    examples = [Example([1], [[2], [3, 3]], [CHOSEN, REJECTED]), Example([1], [[5, 5]], [CHOSEN]),
                Example([1], [[6]], [REJECTED])]
    assert step_counts(examples, pairs=True) == (2, 3) and step_counts(examples, pairs=False) == (4, 3)


def test_batches_give_every_example_once_per_epoch():
    steps = list(batches(list(range(12)), 4, seed=0, epochs=2))
    assert [sorted(sum(steps[i:i + 3], [])) for i in (0, 3)] == [list(range(12))] * 2
    assert steps[:3] != steps[3:]  # another order in the second epoch
    assert steps == list(batches(list(range(12)), 4, seed=0, epochs=2))
    assert steps != list(batches(list(range(12)), 4, seed=1, epochs=2))
    short = list(batches(list(range(14)), 4, seed=0, epochs=2))  # 2 of 14 are left out, each epoch others
    assert [len(step) for step in short] == [4] * 6 and len(set(sum(short, []))) > 12


def test_score_equals_the_plain_way_and_leaves_the_mode_alone(tiny_model):
    """70 examples are more than the 64 that are forwarded at once."""
    model, examples = tiny_model().train(), random_examples([2, 1] * 35)
    scored = score(model, examples)
    assert model.training and [len(logps) for logps in scored] == [2, 1] * 35
    assert_close(torch.tensor(sum(scored, []), dtype=torch.float64), padded_logps(model, examples).detach(), **EXACT)
