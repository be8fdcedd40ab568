"""How training moves the weights: learning rate, optimiser, clipping, the order of the data. What it does, not how it is
written."""
import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_batch import random_examples
from test_step import chunk_for

import train_po
import train_rm
from nanopref.batch import CHOSEN, REJECTED, batches
from nanopref.errors import UserError
from nanopref.logps import sequence_logps
from nanopref.reward import RewardModel, rewards
from nanopref.run.config import RunConfig
from nanopref.run.training import Forward, check_finite, learning_rate, new_optimizer

PLAIN = contextlib.nullcontext()


@pytest.mark.parametrize("steps", [10, 187, 2000])
def test_the_learning_rate_warms_up_for_a_tenth_and_falls_to_nothing(steps):
    rates = [learning_rate(SimpleNamespace(lr=1.0), step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert 0.9 < max(rates) <= 1 and 0.08 * steps - 1 <= peak <= 0.12 * steps + 1
    assert rates[:peak + 1] == sorted(rates[:peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.6 and 0 < rates[-1] <= 1.2 / (0.9 * steps)  # the last step is the smallest, and still one


def updates_of(gradients) -> list[float]:
    """How far the optimiser moves one weight that starts at 1, for each of its gradients, in units of lr."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, moved = new_optimizer(torch.nn.ParameterList([weight]), 1e-4), []
    for gradient in gradients:
        before, weight.grad = weight.item(), torch.tensor([gradient])
        optimizer.step()
        moved.append((before - weight.item()) / 1e-4)
    return moved


def test_the_first_update_is_the_learning_rate_whatever_the_gradient():
    assert updates_of([3.0])[0] == pytest.approx(1, rel=1e-2) == -updates_of([-1e-3])[0]  # 1e-2: float32 near 1


def test_a_weight_without_a_gradient_stays():
    """There is no weight decay: what training does not ask for does not shrink."""
    assert updates_of([0.0] * 5) == [0.0] * 5


def test_one_large_gradient_is_forgotten_within_a_thousand_steps():
    """A gradient a hundred times the usual makes the steps after it smaller, for as long as it is remembered."""
    moved = updates_of([1.0] + [0.01] * 1000)
    assert moved[100] < 0.5 and moved[-1] > 0.9


@pytest.mark.parametrize("script", ["po", "rm"])
def test_a_step_is_cut_to_a_gradient_of_norm_1(script, tiny_model):
    """With plain gradient descent at learning rate 1 the weights move by the gradient: by 1 at most. The norm that is
    logged is the one before the cut."""
    model = tiny_model()
    if script == "po":
        chunk, config = chunk_for("dpo", model), RunConfig(loss="dpo", knobs={"beta": 10.0})
        forward = Forward(sequence_logps, model)
    else:
        torch.manual_seed(0)
        model = RewardModel(replace(model.config, num_labels=1)).double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        chunk = [replace(e, roles=[CHOSEN, REJECTED]) for e in random_examples([2] * 6)]
        config, forward = RunConfig(loss="rm"), Forward(rewards, model)
    before = [p.detach().clone() for p in model.parameters()]
    logged = (train_po if script == "po" else train_rm).step(config, forward, torch.optim.SGD(model.parameters(), 1.0),
                                                             chunk, PLAIN)
    moved = sum((p - b).square().sum() for p, b in zip(model.parameters(), before)).sqrt().item()
    assert logged["grad_norm"] > 1.5 and moved == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("loss, grad_norm", [(float("nan"), 1.0), (float("inf"), 1.0), (0.7, float("nan")),
                                             (0.7, float("inf"))])
def test_neither_the_loss_nor_the_gradient_may_be_infinite(loss, grad_norm):
    check_finite(3, 0.7, 1.0, RunConfig(loss="dpo"), "folder")
    with pytest.raises(UserError, match="step 3: .* diverged; lower --lr"):
        check_finite(3, loss, grad_norm, RunConfig(loss="dpo"), "folder")


def test_seeds_share_no_order():
    """Not even between their epochs: seed 1 must not begin with what is seed 0's second pass."""
    orders = [tuple(batch[0] for batch in batches(list(range(50)), 1, seed, epochs=3)) for seed in range(4)]
    passes = [order[at:at + 50] for order in orders for at in (0, 50, 100)]
    assert len(set(passes)) == len(passes) and all(sorted(one) == list(range(50)) for one in passes)


def test_every_whole_batch_is_trained_on():
    assert [len(batch) for batch in batches(list(range(43)), 8, seed=0, epochs=2)] == [8] * 10
