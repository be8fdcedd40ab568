"""The step of train_po.py: when it waits for the device, and that torch.compile changes nothing."""
import contextlib
import functools
import shutil
from dataclasses import replace

import pytest
import torch
from test_batch import random_examples

import train_po
from nanopref.batch import CHOSEN, MISMATCHED, REJECTED
from nanopref.logps import score, sequence_logps
from nanopref.losses import LOSSES
from nanopref.run.config import RunConfig
from nanopref.run.training import Forward, new_forward, new_optimizer

PLAIN = contextlib.nullcontext()


def chunk_for(loss, model):
    roles = {"kl": MISMATCHED, "w": CHOSEN, "l": REJECTED}
    wanted = [roles[name] for name in LOSSES[loss].inputs]
    examples = [replace(e, roles=wanted) for e in random_examples([len(wanted)] * 6)]
    return [replace(e, ref_logps=ref) for e, ref in zip(examples, score(model, examples))]


@pytest.mark.parametrize("loss", ["dpo", "kto", "cpo", "sft"])
def test_the_device_is_waited_for_only_after_the_optimiser(tiny_model, loss):
    """On the meta device nothing has a value, so whoever asks for one fails: the first to ask must be the log, at the
    end. On a GPU each such question would hold up the queue."""
    model = tiny_model().float()
    chunk = chunk_for(loss, model)
    forward = Forward(sequence_logps, model.to("meta"))
    optimizer, stepped = new_optimizer(forward, 1e-3), []
    optimizer.register_step_post_hook(lambda *given: stepped.append(True))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        train_po.step(RunConfig(loss=loss, accumulate=2, batch_size=6), forward, optimizer, chunk, PLAIN)
    assert stepped == [True]


@pytest.mark.parametrize("logits, backend", [
    (500, "eager"), pytest.param(2 ** 24, "eager", marks=pytest.mark.slow),
    pytest.param(500, "inductor", marks=pytest.mark.slow)], ids=["chunks", "whole logits", "chunks, compiled"])
def test_compiled_steps_are_the_same_steps(tiny_model, monkeypatch, logits, backend):
    """What torch.compile traces, run as it stands: a compiler takes half a minute. One trace must do for batches of all
    shapes, however many chunks their logits are made in."""
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    monkeypatch.setattr("nanopref.logps.LOGITS", logits)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    rows = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        model = tiny_model()
        examples = chunk_for("dpo", model)
        config = RunConfig(loss="dpo", compile=compiled)
        forward = new_forward(sequence_logps, model, config)
        optimizer = new_optimizer(model, 1e-3)
        rows.append([train_po.step(config, forward, optimizer, chunk, PLAIN)
                     for chunk in (examples, examples[:4], examples[2:5], examples[1:])])
    for one, other in zip(*rows):
        assert one == pytest.approx(other, rel=1e-9)  # float64
    # The first batch may be a single row, and the others more.
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
