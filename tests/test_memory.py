"""memory.py: what autograd keeps is counted once, and the estimate covers what a step really keeps."""
import contextlib

import pytest
import torch

from nanopref import logps as logps_module
from nanopref.batch import CHOSEN, REJECTED, Example, collate
from nanopref.logps import sequence_logps
from nanopref.run.memory import estimate, saved_bytes


def test_saved_bytes_by_hand():
    """x * x keeps x, which is a leaf and not counted; exp keeps its result, 100 float64 numbers; a view of it is the same
    storage."""
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 0
    assert saved_bytes(lambda: x.exp()) == 800
    assert saved_bytes(lambda: x.exp().view(10, 10).exp()) == 1600


def examples(n, generator):
    draw = lambda: torch.randint(4, 300, (int(torch.randint(5, 60, (1,), generator=generator)),), generator=generator).tolist()
    return [Example(draw(), [draw(), draw()], [CHOSEN, REJECTED]) for _ in range(n)]


def test_the_estimate_covers_a_step_and_not_much_more(tiny_model):
    """Against what autograd keeps for the longest micro-batch there is, with and without checkpointing: within 10 %, which
    is what the attention of longer rows adds to a straight line."""
    model, pairs = tiny_model(0, torch.float32), examples(20, torch.Generator().manual_seed(0))
    longest = collate(sorted(pairs, key=lambda e: -e.n_tokens)[:8])
    cases = []
    for model.gradient_checkpointing in (False, True):
        parts = estimate(model, pairs, 8, lambda batch: sequence_logps(model, batch), contextlib.nullcontext())
        kept = saved_bytes(lambda: sequence_logps(model, longest))
        one_block = (cases[0][1] - kept) / 2 if cases else 0  # of two; computed again beside what all of them keep
        cases.append((parts["activations"], kept + one_block))
    assert all(estimated == pytest.approx(kept, rel=0.1) for estimated, kept in cases) and cases[1][0] < cases[0][0]
    n_bytes = sum(p.numel() * 4 for p in model.parameters())
    assert (parts["weights"], parts["gradients"]) == (n_bytes, n_bytes) and 2 * n_bytes < parts["AdamW"] < 4 * n_bytes


def test_chunked_logits_are_the_whole_ones_and_are_not_kept(tiny_model, monkeypatch):
    """Same log-probs and gradients to float64 rounding; what is kept no longer holds the logits."""
    model, pairs = tiny_model(), examples(12, torch.Generator().manual_seed(1))
    batch, vocabulary = collate(pairs), model.config.vocab_size

    def step():
        model.zero_grad()
        logps = sequence_logps(model, batch)
        (logps * torch.arange(len(logps))).sum().backward()
        return logps.detach(), [p.grad.clone() for p in model.parameters()]

    whole, whole_grads = step()
    kept = saved_bytes(lambda: sequence_logps(model, batch))
    monkeypatch.setattr(logps_module, "LOGITS", 10 * vocabulary + 3)  # chunks of 10 tokens, the last one shorter
    chunked, grads = step()
    assert len(batch.target) % 10 and (whole - chunked).abs().max() < 1e-12
    assert all((a - b).abs().max() < 1e-9 * (1 + a.abs().max()) for a, b in zip(whole_grads, grads))
    assert kept - saved_bytes(lambda: sequence_logps(model, batch)) > 0.9 * len(batch.target) * vocabulary * 8
