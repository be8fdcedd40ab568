"""The exact world lists everything there is, and what the losses converge to in it can be written down."""
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from nanopref import losses
from nanopref.batch import Example
from nanopref.findings.exercises import check
from nanopref.logps import score
from nanopref.world import exact

WORLD = exact.world()
LABELS = exact.labels(WORLD.reward)


def test_every_response_is_listed_once():
    """1 + 2 + 4 + 8 that end by themselves and 16 that are cut; a transformer gives them all its probability."""
    assert len(set(exact.NAMES)) == len(exact.RESPONSES) == 31 and exact.NAMES[:4] == [".", "a.", "b.", "aa."]
    assert [int((exact.LENGTHS == n).sum()) for n in (1, 2, 3, 4)] == [1, 2, 4, 24]
    assert all((r[-1] == exact.END) == (exact.END in r) and (exact.END in r or len(r) == 4) for r in exact.RESPONSES)
    for seed in range(3):
        logp = exact.logps(exact.transformer(seed))
        assert_close(logp.exp().sum(1), torch.ones(3).double(), rtol=0, atol=1e-12)
        assert logp.std() > 0.5  # far from uniform
    model = exact.transformer(0)
    one_by_one = [score(model, [Example(prompt, [r], [0])])[0][0] for prompt in exact.PROMPTS for r in exact.RESPONSES]
    assert_close(exact.logps(model).detach().flatten(), torch.tensor(one_by_one, dtype=torch.float64), rtol=0, atol=1e-12)


def test_labels_are_frequencies():
    """200,000 draws: a frequency of 1/2,790 is off by some 12 %; the largest difference of 2,790 by 4.5 times that."""
    assert LABELS.sum().item() == pytest.approx(1, abs=1e-12) and not torch.diagonal(LABELS, dim1=1, dim2=2).any()
    drawn = exact.draw_labels(WORLD.reward, 200_000, seed=0)
    assert drawn.sum().item() == pytest.approx(1, abs=1e-12)
    assert ((drawn - LABELS).abs() <= 4.5 * (LABELS / 200_000).sqrt() + 1e-5).all()  # + 2 draws, where few are expected
    assert not torch.equal(drawn, exact.draw_labels(WORLD.reward, 200_000, seed=1))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_ipo_converges_to_its_own_optimum(tau):
    """pi_ref exp(E_{y' uniform}[P(y beats y')] / tau) / Z (arXiv:2310.12036, sec. 4). 1e-6 is where L-BFGS stops."""
    wins = exact.preference(WORLD.reward).mean(2)
    want = exact.optimum(WORLD._replace(reward=wins), tau)
    assert exact.total_variation(exact.learnt(partial(losses.ipo, tau=tau, average=False), WORLD, LABELS), want) < 1e-6


@pytest.mark.parametrize("loss, reference", [("ln_dpo", True), ("simpo", False)])
def test_division_by_length_multiplies_the_reward_by_length(loss, reference):
    """pi = pi_ref^(1 or 0) exp(|y| (r + c) / beta), c(x) such that it adds up to 1: no longer free."""
    beta, c = 2.0, torch.zeros(3, 1).double()
    logp = lambda c: WORLD.ref_logp * reference + exact.LENGTHS * (WORLD.reward + c) / beta
    for _ in range(50):  # Newton on log sum exp = 0; its slope is the expected length / beta
        c = c - beta * logp(c).logsumexp(1, keepdim=True) / (logp(c).softmax(1) * exact.LENGTHS).sum(1, keepdim=True)
    knobs = {"beta": beta} if reference else {"beta": beta, "gamma": 0.0}
    found = exact.learnt(partial(losses.LOSSES[loss].fn, **knobs), WORLD, LABELS)
    assert exact.total_variation(found, logp(c)) < 1e-6
    assert exact.total_variation(found, exact.optimum(WORLD, beta)) > 0.1


def test_a_large_beta_stays_closer_but_starts_faster():
    """Documents 003 and 002. KL(pi* || pi_ref) falls with beta; the gradient at the start is proportional to it."""
    distances, slopes = [], []
    for beta in (0.2, 0.5, 1.0, 3.0):
        distances.append(exact.kl(exact.optimum(WORLD, beta), WORLD.ref_logp))
        logits = WORLD.ref_logp.clone().requires_grad_()
        loss = exact.preference_loss(partial(losses.dpo, beta=beta), exact.tabular(logits), WORLD.ref_logp, LABELS)
        slopes.append(torch.autograd.grad(loss, logits)[0] / beta)
    assert all((near < far).all() for far, near in zip(distances, distances[1:]))
    for slope in slopes[1:]:
        assert_close(slope, slopes[0], rtol=0, atol=1e-15)  # entries of some 1e-2


def test_certain_labels_have_no_finite_optimum():
    """The better response always chosen: beta = 5, which keeps pi* within 0.03 nats of the reference, holds nothing.
    The margins grow until the policy gives only the best response, -log pi_ref(best) nats away."""
    certain = LABELS * (WORLD.reward[:, :, None] > WORLD.reward[:, None, :])
    found = exact.learnt(partial(losses.dpo, beta=5.0), WORLD, certain)
    best = WORLD.ref_logp.gather(1, WORLD.reward.argmax(1, keepdim=True))[:, 0]
    assert (exact.kl(exact.optimum(WORLD, 5.0), WORLD.ref_logp) < 0.03).all()
    assert_close(exact.kl(found, WORLD.ref_logp), -best, rtol=0, atol=0.1)  # L-BFGS stops while margins still grow


def test_check_tells_right_from_wrong(capsys):
    for answer in (..., torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 1.0, None, torch.tensor([1.0, torch.nan])):
        check("exercise 1", answer, torch.tensor([1.0, 2.0]))
    assert capsys.readouterr().out.splitlines() == [
        "exercise 1: not answered yet", "exercise 1: right", "exercise 1: not yet, off by 0.5",
        "exercise 1: not yet, expected shape (2,), got ()",
        "exercise 1: not yet, expected a number or a tensor, got NoneType (is the `return` there?)",
        "exercise 1: not yet, off by nan"]
