"""One test per equation of the documents, E1 to E34, mostly in the exact world, where an expectation is a sum.

    python tests/test_equations.py > notebooks/README.md     the table equation -> code -> notebook cell -> test

Documents: 000 a course report on reward models and DPO, 001 slides on RLHF, DPO and ORPO, 002 a blog post on DPO, 003
an alignment guide, 004 "A Practical Analysis of Human Alignment with *PO" (arXiv:2407.15229). Package functions are
called through their modules, so that test_mutants.py can put broken ones in their place.
"""
import importlib
import json
import math
import re
import sys
from functools import cache, partial
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where this is run as a script
from test_evaluate import test_measures_by_hand as measures_by_hand
from test_metrics import test_dpo_step_by_hand as metrics_by_hand

from nanopref import batch, logps, losses, reward, rl
from nanopref.losses import Seq
from nanopref.run import metrics
from nanopref.world import exact

BETAS = 0.1, 0.5, 1.0, 5.0
WORLD = exact.world()
X, Y = WORLD.reward.shape


class Equation(NamedTuple):
    source: str     # document, place
    statement: str
    code: str       # where the package has it: names relative to nanopref, separated by blanks
    test: Callable


EQUATIONS = {}


def equation(number, source, statement, code):
    """Registers a test as the proof of equation E`number`."""
    def register(test):
        assert test.__name__.startswith(f"test_e{number:02d}_") and number not in EQUATIONS
        EQUATIONS[number] = Equation(source, statement, code, test)
        return test
    return register


def close(got, want, atol=1e-12):
    """Equal up to float64 rounding, unless a test gives another reason."""
    got, want = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (got, want))
    assert_close(got, want, rtol=0, atol=atol)


def differs(got, want, by):
    """The test of the test: what it tells apart differs by far more than its tolerance."""
    assert (torch.as_tensor(got) - torch.as_tensor(want)).abs().max() > by


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def policy(seed):
    """A policy with nothing special about it, (X, Y) nats."""
    return exact.tabular(randn(X, Y, seed=seed))


def tabular_scores(logp):
    """d log softmax(y) / d logit(y') of a table, (X, Y, Y): one logit per response, each prompt has its own."""
    return torch.eye(Y).double()[None] - logp.exp()[:, None]


def pairs(seed=0, n=8):
    """Chosen and rejected: n pairs of unequal lengths, all numbers drawn."""
    def seq(seed):
        length = torch.randint(1, 13, (n,), generator=generator(seed))
        logp = -length * torch.rand(n, generator=generator(seed + 1), dtype=torch.float64) * 2 - 0.1
        return Seq(logp.requires_grad_(), logp.detach() + randn(n, seed=seed + 2, scale=3), length)
    return seq(10 * seed + 100), seq(10 * seed + 200)


def gradients(value, *tensors):
    return torch.autograd.grad(value, tensors, retain_graph=True)


def check_loss(name, want, **knobs):
    """A loss of the package is the formula `want` of this file, and its hand gradient is autograd's of that formula."""
    w, l = pairs()
    close(losses.LOSSES[name].fn(w, l, **knobs).loss, want(w, l))
    for got, auto in zip(losses.grad_of(name, w, l, **knobs)[:2], gradients(want(w, l).sum(), w.logp, l.logp)):
        close(got, auto)


def same_length(s, n=5):
    return s._replace(length=torch.full_like(s.length, n))


# ---- language models -----------------------------------------------------------------------------------------------

def sft_on(model, examples):
    """The SFT loss of examples as training computes it, the logits it was made from, hidden states and batch."""
    kept = {}
    model.model["norm"].register_forward_hook(lambda module, inputs, out: kept.update(hidden=out))
    plain = type(model).logits
    model.logits = lambda hidden: kept.setdefault("logits", plain(model, hidden))
    part = batch.collate(examples)
    w = logps.by_role(part, logps.sequence_logps(model, part))["w"]
    loss = losses.reduce(losses.sft(w), n_tokens=w.length.sum().item())
    del model.logits
    kept["logits"].retain_grad()
    kept["hidden"].retain_grad()
    loss.backward()
    return loss, kept["logits"], kept["hidden"], part


@equation(1, "001, autoregressive LM", "L = −(1/T) Σ log P(x_t | x_<t)", "logps.token_logps losses.sft")
def test_e01_autoregressive_cross_entropy():
    """The first token stands in for the prompt; T counts the others."""
    text, model = [0, 1, 1, 0, 2, 1], exact.transformer(0)
    loss, logits, _, _ = sft_on(model, [batch.Example(text[:1], [text[1:]], [0])])
    p = model.logits(model(torch.tensor([text]))[0]).softmax(-1)
    T = len(text) - 1
    close(loss, -sum(math.log(p[t - 1, text[t]].item()) for t in range(1, T + 1)) / T)
    close(logits.grad, (p[:-1] - F.one_hot(torch.tensor(text[1:]), 3)) / T)


@equation(2, "001, masked LM",
          "loss over the masked positions only, context on both sides", "model.Transformer.forward")
def test_e02_masked_cross_entropy():
    """The model has no such mode; given an attention mask that hides nothing, it is one. Token 2 is the mask token."""
    text, masked, model = torch.tensor([0, 1, 1, 0, 0, 1]), torch.tensor([1, 4]), exact.transformer(0)
    everywhere = torch.ones(1, 1, 6, 6, dtype=torch.bool)

    def logits(after=None):
        ids = text.clone()
        ids[masked] = 2
        if after is not None:
            ids[5] = after
        return model.logits(model(ids[None], attn_mask=everywhere)[0])

    predicted = logits()
    loss = -sum(math.log(predicted[t].softmax(-1)[text[t]].item()) for t in masked) / len(masked)
    close(F.cross_entropy(predicted[masked], text[masked]), loss)
    gradient, = gradients(F.cross_entropy(predicted[masked], text[masked]), predicted)
    assert gradient[masked].any() and not gradient[[0, 2, 3, 5]].any()
    differs(logits(after=0)[1], logits(after=1)[1], by=1e-3)  # what comes later is seen
    close(model.logits(model(torch.tensor([[0, 2, 1]]))[0, 1]), model.logits(model(torch.tensor([[0, 2, 0]]))[0, 1]))


@equation(3, "001 (mean), 003 (sum), SFT", "−(1/T) Σ log P(y_t | x, y_<t); the prompt is not trained on",
          "losses.sft losses.reduce batch.collate")
def test_e03_sft_trains_on_responses_only():
    """Two responses of 3 and 5 tokens: the token mean is over all 8, so they count 3 : 5; a mean of the two means would
    count them 1 : 1."""
    examples = [batch.Example([0, 1], [[1, 0, 2]], [0]), batch.Example([1], [[0, 0, 1, 1, 2]], [0])]
    loss, _, hidden, part = sft_on(exact.transformer(0), examples)
    plain = exact.transformer(0)
    logp = lambda e: plain.logits(plain(torch.tensor([e.prompt + e.responses[0]]))[0]).log_softmax(-1)
    nll = [-sum(logp(e)[len(e.prompt) + t - 1, token] for t, token in enumerate(e.responses[0])) for e in examples]
    close(loss, (nll[0] + nll[1]) / 8)
    differs(loss, nll[0] / 6 + nll[1] / 10, by=1e-3)  # the mean of the two means
    close(losses.sft(logps.by_role(part, logps.sequence_logps(plain, part))["w"]).nll, torch.stack(nll))  # the sums
    trained = torch.zeros_like(hidden[..., 0], dtype=torch.bool).flatten()
    trained[logps.predictors(part)] = True
    moved = hidden.grad.flatten(0, 1).abs().sum(-1) > 0
    assert torch.equal(moved, trained) and trained.sum() == 8  # exactly zero elsewhere: prompt, padding, last token


# ---- policy gradients ----------------------------------------------------------------------------------------------

@equation(4, "001, policy gradient", "∇E_π[r] = E_π[∇log π · r]", "world.exact.policy_gradient world.exact.score_functions")
def test_e04_score_function():
    """1e-12: sums of 93 terms. One estimate from 4,000 samples for the first prompt lies within 4.5 standard errors in
    20 directions (1 chance in 7,000 to fail), and those errors are what the exact variance says, to the 10 % that a
    variance from 4,000 samples may be off."""
    model = exact.transformer(1)
    parameters, logp = list(model.parameters()), exact.logps(model)
    scores = exact.score_functions(logp, parameters)
    mean, _ = exact.policy_gradient(logp.detach(), scores, WORLD.reward)
    close(mean, torch.cat([g.flatten() for g in gradients(exact.expect(logp, WORLD.reward).mean(), *parameters)]))
    mean, variance = exact.policy_gradient(logp[:1].detach(), scores[:1], WORLD.reward[:1])
    drawn = torch.multinomial(logp[0].exp(), 4000, replacement=True, generator=generator(0))
    samples = scores[0, drawn] * WORLD.reward[0, drawn, None]  # (4000, P)
    directions = F.normalize(randn(20, len(mean)), dim=1)
    off = (samples @ directions.T).mean(0) - directions @ mean
    assert (off.abs() < 4.5 * (samples @ directions.T).std(0) / math.sqrt(4000)).all()
    assert samples.var(0).sum().item() == pytest.approx(variance, rel=0.1)


@equation(5, "001, importance weights", "E_π̄[(π/π̄) ∇log π · r] is the same gradient", "world.exact.policy_gradient")
def test_e05_importance_weights():
    """Unbiased from any behaviour policy. Near by the variance may even fall (the policy itself is not the best one to
    draw from); far away it explodes."""
    logp, away = policy(1), randn(X, Y, seed=2)
    scores = tabular_scores(logp)
    on_policy, on_policy_variance = exact.policy_gradient(logp, scores, WORLD.reward)
    variances = []
    for distance in (-0.1, 0.5, 1.0, 2.0, 3.0):
        mean, variance = exact.policy_gradient(logp, scores, WORLD.reward, exact.tabular(logp + distance * away))
        close(mean, on_policy)
        variances.append(variance)
    assert variances == sorted(variances) and variances[0] < on_policy_variance < variances[-1] / 10


@equation(9, "001, 003, RLHF objective", "E_π[r] − β KL(π‖π_ref); the reward r − β log(π/π_ref) has the same gradient",
          "world.exact.objective rl.sequence_reward")
def test_e09_rlhf_objective():
    logp, beta = policy(1).requires_grad_(), 0.7
    by_hand = sum(logp[x, y].exp() * (WORLD.reward[x, y] - beta * (logp[x, y] - WORLD.ref_logp[x, y]))
                  for x in range(X) for y in range(Y)) / X
    close(exact.objective(logp, WORLD, beta), by_hand)
    logits = randn(X, Y, seed=1).requires_grad_()
    logp = exact.tabular(logits)
    want, = gradients(exact.objective(logp, WORLD, beta), logits)
    shaped = rl.sequence_reward(WORLD.reward, logp, WORLD.ref_logp, beta).detach()  # a constant for the gradient
    got, = gradients(exact.expect(logp, shaped).mean(), logits)
    close(got, want)


@equation(10, "003, PPO",
          "A = Q − V; GAE; min(ρA, clip(ρ, 1−ε, 1+ε)A)", "rl.gae rl.clipped_surrogate rl.d_clipped_surrogate")
def test_e10_gae_and_clipped_surrogate():
    rewards, values, gamma, lam, T = randn(6, seed=1), randn(6, seed=2), 0.9, 0.8, 6
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < T else 0) - values[t] for t in range(T)]
    explicit = [sum((gamma * lam) ** k * delta[t + k] for k in range(T - t)) for t in range(T)]
    close(rl.gae(rewards, values, gamma, lam), torch.stack(explicit))
    returns = torch.stack([sum(gamma ** k * rewards[t + k] for k in range(T - t)) for t in range(T)])
    close(rl.gae(rewards, values, gamma, 1.0), returns - values)
    close(rl.gae(rewards, values, gamma, 0.0), torch.stack(delta))
    close(rl.gae(rewards, values, lam=1.0)[0], rewards.sum() - values[0])  # nothing is discounted unless asked for
    with pytest.raises(ValueError, match="one shape"):
        rl.gae(rewards, F.pad(values, (0, 1)), gamma, lam)  # V_T is 0, and not passed

    # With the exact V, the mean of GAE over all responses that start with a token is that token's Q - V, for any lam.
    p, r = policy(1)[0].exp(), WORLD.reward[0]
    starts = lambda prefix: torch.tensor([response[:len(prefix)] == prefix for response in exact.RESPONSES])
    mean = lambda x, prefix: (p * x)[starts(prefix)].sum() / p[starts(prefix)].sum()
    V = [torch.stack([mean(r, response[:t]) for t in range(len(response))]) for response in exact.RESPONSES]
    for lam in (0.0, 0.5, 1.0):
        first = torch.stack([rl.gae(F.pad(r[y:y + 1], (len(v) - 1, 0)), v, 1.0, lam)[0] for y, v in enumerate(V)])
        for token in exact.TOKENS:
            close(mean(first, [token]), mean(r, [token]) - mean(r, []))

    ratios = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0], dtype=torch.float64).repeat(2)
    old, advantage = randn(14), torch.tensor([2.0] * 7 + [-3.0] * 7, dtype=torch.float64)
    logp = (old + ratios.log()).requires_grad_()
    value = rl.clipped_surrogate(logp, old, advantage, epsilon=0.2)
    close(value[:7], [1.0, 1.58, 1.62, 2.0, 2.38, 2.4, 2.4])
    close(value[7:], [-2.4, -2.4, -2.43, -3.0, -3.57, -3.63, -6.0])
    by_hand = rl.d_clipped_surrogate(logp.detach(), old, advantage, epsilon=0.2)
    close(by_hand, gradients(value.sum(), logp)[0])
    assert (by_hand != 0).tolist() == [True] * 5 + [False] * 2 + [False] * 2 + [True] * 5


@equation(11, "001, PPO-ptx", "+ γ E_pretrain[log π(x)]", "rl.ppo_ptx")
def test_e11_ppo_ptx():
    """Its gradient is the RL gradient plus gamma times that of the log-likelihood of plain text."""
    model, gamma = exact.transformer(1), 0.3
    parameters, logp = list(model.parameters()), exact.logps(model)
    value, text = exact.expect(logp, WORLD.reward), logp[0, 3:7]  # four texts
    got = gradients(rl.ppo_ptx(value, text, gamma), *parameters)
    for g, of_rl, of_text in zip(got, gradients(value.mean(), *parameters), gradients(text.sum() / 4, *parameters)):
        close(g, of_rl + gamma * of_text)


@equation(12, "001, KL divergence", "KL ≥ 0, zero only for equal policies; its estimates from samples",
          "world.exact.kl rl.kl_estimates")
def test_e12_kl():
    """k1 and k3 are unbiased, k2 is not; k2 and k3 cannot be negative, k1 is negative for some responses."""
    p, q = policy(1), policy(2)
    by_hand = torch.stack([sum(p[x, y].exp() * (p[x, y] - q[x, y]) for y in range(Y)) for x in range(X)])
    close(exact.kl(p, q), by_hand)
    assert (exact.kl(p, q) > 0.1).all() and not exact.kl(p, p).any()
    estimates = rl.kl_estimates(p - q)
    means = {name: exact.expect(p, value) for name, value in estimates.items()}
    close(means["k1"], by_hand), close(means["k3"], by_hand), differs(means["k2"], by_hand, by=0.05)
    close(means["k2"], exact.expect(p, (p - q) ** 2) / 2)
    assert (estimates["k1"] < -0.1).any() and (estimates["k2"] >= 0).all() and (estimates["k3"] >= 0).all()


@equation(16, "001 (12)–(23), actor-critic",
          "max E[r] − β KL = max E[(r − β log Z) − β log(π/π_ref)]; b = β log Z and the variance",
          "world.exact.log_z world.exact.policy_gradient")
def test_e16_actor_critic():
    """Line by line, with what each line drops or turns; then REINFORCE with no baseline, the value and beta log Z."""
    beta, logp = 0.7, policy(1)
    ref, r, log_z = WORLD.ref_logp, WORLD.reward, exact.log_z(WORLD, beta)[:, None]
    star, E = exact.optimum(WORLD, beta), lambda value: exact.expect(logp, value).mean()
    whole = exact.objective(logp, WORLD, beta)
    close(E(r - beta * (logp - ref)), whole)                                                       # (12)
    close(E(beta * (star - ref) + beta * log_z - beta * (logp - ref)), whole)                      # (13)
    close(E(beta * (star - logp) + beta * log_z), whole)                                           # (14)
    close(beta * E(star - logp) + beta * log_z.mean(), whole)                                      # (15)
    without_z = whole - beta * log_z.mean()
    close(-beta * E(logp - star), without_z)                                                       # (16)
    close(-beta * exact.kl(logp, star).mean(), without_z)                                          # (17), (18)
    close(beta * E(logp + log_z - ref - r / beta), -without_z)                                     # (20), (21)
    close(E(r - beta * log_z - beta * logp + beta * ref), without_z)                               # (22)
    close(E(r - beta * log_z - beta * (logp - ref)), without_z)                                    # (23), corrected
    differs(E(r - beta * log_z - beta * logp / ref), without_z, by=0.1)                            # (23), as printed

    def variances(start):
        scores = tabular_scores(start)
        shaped = rl.sequence_reward(r, start, ref, beta)
        value = exact.expect(start, shaped)[:, None]  # the exact V(x)
        close(value, log_z * beta - beta * exact.kl(start, star)[:, None])
        found = [exact.policy_gradient(start, scores, shaped - b) for b in (0 * value, value, beta * log_z)]
        for mean, _ in found:
            close(mean, found[0][0])  # no baseline biases the gradient
        return [variance for _, variance in found]

    nothing, with_v, with_z = variances(ref)
    assert with_v < nothing < with_z  # at the start the normaliser is worse than no baseline at all;
    nothing, with_v, with_z = variances(star)
    assert max(with_v, with_z) < 1e-24 and nothing > 0.1  # at the optimum every advantage is 0, up to 1e-15, squared


# ---- reward models -------------------------------------------------------------------------------------------------

@equation(6, "001 (1)–(4), 003", "Bradley–Terry: four forms; σ(r_w − r_l)", "world.exact.preference")
def test_e06_bradley_terry():
    r_w, r_l = randn(50, seed=1, scale=3), randn(50, seed=2, scale=3)
    got = exact.preference(torch.stack([r_w, r_l], 1))[:, 0, 1]
    close(got, r_w.exp() / (r_w.exp() + r_l.exp()))      # (1)
    close(got, 1 / (1 + (r_l - r_w).exp()))              # (2)
    close(got, 1 / (1 + (-(r_w - r_l)).exp()))           # (3)
    close(got, torch.sigmoid(r_w - r_l))                 # (4)
    close(exact.preference(torch.stack([r_w, r_l], 1) + randn(50, 1, seed=3, scale=9))[:, 0, 1], got)  # r + c(x)
    close(-torch.log(got), reward.bradley_terry(r_w, r_l))


@equation(7, "001, 003, L_RM", "−log σ(r_w − r_l)", "reward.bradley_terry reward.d_bradley_terry world.exact.reward_loss")
def test_e07_reward_model_loss():
    """And the population minimiser is the true reward up to a constant per prompt; 1e-6 is where L-BFGS stops."""
    r_w, r_l = randn(20, seed=1, scale=3).requires_grad_(), randn(20, seed=2, scale=3).requires_grad_()
    loss, sigma = reward.bradley_terry(r_w, r_l), torch.sigmoid(r_l - r_w)
    close(loss, torch.log(1 + torch.exp(r_l - r_w)))
    for got, auto, want in zip(reward.d_bradley_terry(r_w, r_l), gradients(loss.sum(), r_w, r_l), (-sigma, sigma)):
        close(got, want), close(auto, want)
    weight = exact.labels(WORLD.reward)
    learnt = exact.minimise(lambda table: exact.reward_loss(table, weight), torch.zeros(X, Y).double())
    centred = lambda r: r - r.mean(1, keepdim=True)
    close(centred(learnt), centred(WORLD.reward), atol=1e-6)


@equation(8, "003, InstructGPT",
          "K ranked responses: all pairs of a prompt, averaged", "reward.ranking reward.d_ranking")
def test_e08_ranking():
    ranked = randn(3, 4, scale=2).requires_grad_()
    by_hand = [sum(-math.log(torch.sigmoid(row[i] - row[j])) for i in range(4) for j in range(i + 1, 4)) / 6
               for row in ranked.detach()]
    loss = reward.ranking(ranked)
    close(loss, by_hand)
    close(reward.d_ranking(ranked), gradients(loss.sum(), ranked)[0])
    close(reward.ranking(ranked[:, :2]), reward.bradley_terry(ranked[:, 0], ranked[:, 1]))
    for wrong in (ranked[:, :1], ranked[0]):
        with pytest.raises(ValueError, match="at least two"):
            reward.ranking(wrong)


@equation(30, "000, length bias",
          "r′ = r/(α + len); penalty λ|len − L0|", "reward.length_normalised reward.length_penalised")
def test_e30_length_rules():
    """Three answers. For a reward below 0 the division pays for length, and a shift of the origin changes the order."""
    r, length = torch.tensor([2.0, -2.0, -2.0]).double(), torch.tensor([10, 10, 40])
    close(reward.length_normalised(r, length, 10), [0.1, -0.1, -0.04])
    close(reward.length_penalised(r, length, 0.1, 20), [1.0, -3.0, -4.0])
    close(reward.length_normalised(r + 5, length, 10), [0.35, 0.15, 0.06])  # the last two have changed places
    close(reward.length_penalised(r + 5, length, 0.1, 20), [6.0, 2.0, 1.0])  # 5 more for each


# ---- from the objective to DPO -------------------------------------------------------------------------------------

@equation(13, "001 (5)–(11), 002, 003", "π* = π_ref exp(r/β)/Z maximises E[r] − β KL(π‖π_ref)",
          "world.exact.objective world.exact.optimum world.exact.log_z")
def test_e13_optimum_of_the_objective():
    """Every line has the same value up to what it drops. From the reference, L-BFGS on logits arrives within 1e-6, for
    beta 0.5 and up: below, the objective has a plateau near deterministic policies."""
    for beta in BETAS:
        ref, r, log_z = WORLD.ref_logp, WORLD.reward, exact.log_z(WORLD, beta)[:, None]
        star = exact.optimum(WORLD, beta)
        close(star.exp().sum(1), torch.ones(X))
        close(log_z[:, 0], [math.log(sum(math.exp(ref[x, y] + r[x, y] / beta) for y in range(Y))) for x in range(X)])
        for logp in (ref, policy(1), star):
            E, top = lambda value: exact.expect(logp, value).mean(), exact.objective(logp, WORLD, beta)
            close(E(r - beta * (logp - ref)), top)                                                   # (5)
            for line in (E(logp - ref - r / beta),                                                   # (6)
                         E(logp - (ref.exp() * (r / beta).exp()).log()),                             # (7), (8)
                         E(logp - ((ref + r / beta).exp() / log_z.exp()).log() - log_z),             # (9)
                         E(logp - star - log_z),                                                     # (10)
                         exact.kl(logp, star).mean() - log_z.mean()):                                # (11), corrected
                close(-beta * line, top, atol=1e-11)  # r / beta is up to 30 at beta = 0.1
            assert top <= exact.objective(star, WORLD, beta) + 1e-12
        if beta >= 0.5:
            steps = 1000 if beta == 0.5 else 400  # the smaller beta, the longer the way
            found = exact.minimise(lambda table: -exact.objective(exact.tabular(table), WORLD, beta), ref, steps)
            assert exact.total_variation(exact.tabular(found), star) < 1e-6


@equation(14, "000 (1), 001, 002, 003", "r = β log(π*/π_ref) + β log Z; r + c(x) has the same preferences and the same π*",
          "world.exact.optimum world.exact.preference")
def test_e14_reward_of_the_optimum():
    for beta in BETAS:
        star = exact.optimum(WORLD, beta)
        close(beta * (star - WORLD.ref_logp) + beta * exact.log_z(WORLD, beta)[:, None], WORLD.reward)
        moved = WORLD._replace(reward=WORLD.reward + randn(X, 1, seed=3, scale=4))
        close(exact.optimum(moved, beta), star, atol=1e-11)
        close(exact.preference(moved.reward), exact.preference(WORLD.reward))


@equation(15, "000 (2), 001, 002, 003",
          "L_DPO = −log σ(β log(π/π_ref)(y_w) − β log(π/π_ref)(y_l)); its minimiser is π*",
          "losses.dpo losses.d_dpo world.exact.preference_loss")
def test_e15_dpo():
    """Trained on nothing but preferences, DPO arrives at the optimum of RLHF: DPO's central claim. IPO does not."""
    check_loss("dpo", lambda w, l: torch.log(1 + torch.exp(-0.3 * (w.logp - w.ref_logp) + 0.3 * (l.logp - l.ref_logp))),
               beta=0.3)
    everything = exact.labels(WORLD.reward)
    for beta in BETAS:
        star = exact.optimum(WORLD, beta)
        assert exact.total_variation(exact.learnt(partial(losses.dpo, beta=beta), WORLD, everything), star) < 1e-4
    ipo = exact.learnt(partial(losses.ipo, tau=5.0, average=False), WORLD, everything)
    assert exact.total_variation(ipo, exact.optimum(WORLD, 5.0)) > 0.01
    from_labels = lambda n: exact.learnt(partial(losses.dpo, beta=1.0), WORLD, exact.draw_labels(WORLD.reward, n, seed=0))
    apart = [exact.total_variation(from_labels(n), exact.optimum(WORLD, 1.0)) for n in (3000, 300_000)]
    assert apart[1] < apart[0] / 3  # 100 times the labels: about a tenth


@equation(17, "001, gradient of L_DPO", "∇L = −β σ(r̂_l − r̂_w)(∇log π(y_w) − ∇log π(y_l))", "losses.d_dpo")
def test_e17_gradient_in_parameter_space():
    """Of a transformer that has left its reference; 1e-10: thousands of float64 products in two orders."""
    model, beta = exact.transformer(1), 0.7
    parameters, logp = list(model.parameters()), exact.logps(model)
    scores = exact.score_functions(logp, parameters)
    x, i, j = torch.tensor([0, 1, 2]), torch.tensor([3, 20, 8]), torch.tensor([30, 1, 12])
    w, l = (Seq(logp[x, y], WORLD.ref_logp[x, y], exact.LENGTHS[y]) for y in (i, j))
    got = torch.cat([g.flatten() for g in gradients(losses.dpo(w, l, beta=beta).loss.mean(), *parameters)])
    weight = torch.sigmoid(beta * (l.log_ratio - w.log_ratio))
    differs(weight, 0.5, by=0.1)
    close(got, (-beta * weight[:, None] * (scores[x, i] - scores[x, j])).mean(0), atol=1e-10)
    hand = losses.grad_of("dpo", w, l, beta=beta)
    close(got, (hand.w[:, None] * scores[x, i] + hand.l[:, None] * scores[x, j]).mean(0), atol=1e-10)


@equation(18, "000 (5)", "the weight σ(r̂_l − r̂_w) of a pair is ½ at the start, whatever π_ref thinks of the pair",
          "losses.d_dpo")
def test_e18_weight_at_the_start():
    """Document 000 has lost the reference. By the time a wrong order of G nats is turned round, the weight is
    sigmoid(-beta G): that is what makes it hard."""
    beta, gap = 0.1, torch.tensor([-40.0, -5.0, 0.0, 5.0, 40.0]).double()  # log pi_ref(y_w) - log pi_ref(y_l)
    at = lambda logp, ref: Seq(logp, ref, torch.ones(5))
    zero = torch.zeros(5).double()
    weight = lambda logp_w: -losses.grad_of("dpo", at(logp_w, gap), at(zero, zero), beta=beta).w / beta
    close(weight(gap), [0.5] * 5)
    close(weight(zero)[:2], torch.sigmoid(beta * gap)[:2])  # moved by G: the order is about to flip


@equation(19, "000, DPO reward curves",
          "the rewards are r_w and r_l one by one; β(Δ_w + Δ_l) is displacement, no reward",
          "run.metrics.step_metrics")
def test_e19_rewards_one_by_one():
    w, l = pairs()
    none = Seq(*(t[:0] for t in w))
    log = lambda w, l: metrics.step_metrics([({"w": w, "l": l, "kl": none}, losses.dpo(w, l, beta=0.2))])
    found = log(w, l)
    close([found["rewards/chosen"], found["rewards/rejected"]], [0.2 * s.log_ratio.mean().item() for s in (w, l)])
    close(found["rewards/margins"], 0.2 * (w.log_ratio - l.log_ratio).mean())
    sunk = [s._replace(logp=s.logp - 20) for s in (w, l)]
    close(losses.dpo(*sunk, beta=0.2).loss, losses.dpo(w, l, beta=0.2).loss)  # the sum fell by 8, the loss not at all
    close(log(*sunk)["rewards/margins"], found["rewards/margins"])


@equation(31, "000 (4)", "the log-ratio is a sum over tokens, so its spread grows with length", "logps.sequence_logps")
def test_e31_spread_grows_with_length():
    """Two unrelated transformers, 200 random texts per length: from 4 to 64 tokens the standard deviation of the sum
    grows by about sqrt(16) = 4, as for independent tokens; each estimate is off by some 5 %. That of the mean falls."""
    policy, reference, spread = exact.transformer(1), exact.transformer(2), []
    for model in (policy, reference):
        model.config.max_position_embeddings = 80
    for n in (4, 64):
        texts = torch.randint(0, 3, (200, n), generator=generator(n)).tolist()
        part = batch.collate([batch.Example([0], [text], [0]) for text in texts])
        with torch.no_grad():
            ratio = logps.token_logps(policy, part) - logps.token_logps(reference, part)
            total = logps.sequence_logps(policy, part) - logps.sequence_logps(reference, part)
        close(total, ratio.view(200, n).sum(1), atol=1e-10)
        spread.append(total.std().item())
    assert 3 < spread[1] / spread[0] < 6


@equation(32, "000, 003, metrics", "rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies, logps",
          "run.metrics.step_metrics reward.reward_metrics")
def test_e32_metrics():
    """Of a policy on three pairs by hand (see test_metrics.py), and of a reward model on two."""
    metrics_by_hand()
    found = reward.reward_metrics([torch.tensor([[1.0, -2.0], [0.0, 1.0]])])
    assert found == {"rewards/chosen": -0.5, "rewards/rejected": 0.5, "rewards/margins": -1.0,
                     "rewards/accuracies": 0.5}


@equation(33, "004 §5", "mean score, win vs chosen, win vs SFT, KL of the policy's own samples, length",
          "judge.measures.measure_run judge.measures.answer_values judge.measures.wins judge.measures.kl_to_start "
          "judge.measures.pair_accuracy judge.stats.outcomes")
def test_e33_measures(tokenizer, tiny_model):
    """Three answers by hand; ties count 1/2 and are reported. See test_evaluate.py."""
    measures_by_hand(tokenizer, tiny_model)


# ---- the other losses ----------------------------------------------------------------------------------------------

def per_token(s):
    return Seq(s.logp / s.length, s.ref_logp / s.length, s.length)


@equation(20, "002, code", "DPO with MEAN log-probs is LN-DPO, and not DPO", "losses.ln_dpo")
def test_e20_dpo_with_means():
    w, l = pairs()
    close(losses.dpo(per_token(w), per_token(l), beta=2.0).loss, losses.ln_dpo(w, l, beta=2.0).loss)
    differs(losses.dpo(w, l, beta=2.0).loss, losses.ln_dpo(w, l, beta=2.0).loss, by=0.5)


@equation(21, "000, 003, KTO",
          "L = E[λ_y (1 − v)], v = σ(r − z0) or σ(z0 − r), z0 = β KL held constant",
          "losses.kto losses.d_kto")
def test_e21_kto():
    """z0 is a constant of the step and never negative. Document 000 has a plus for the rejected: they would rise."""
    (w, l), (kl, _) = pairs(0), pairs(1)
    l, beta = Seq(*(t[:5] for t in l)), 0.3
    for shift in (5.0, -5.0):  # of the mismatched log-ratios: z0 above 0, and cut at 0
        kl_ = kl._replace(logp=(kl.ref_logp + shift).requires_grad_())
        z0 = beta * max(0.0, shift)
        want = lambda w, l: (1.3 * (1 - torch.sigmoid(beta * (w.logp - w.ref_logp) - z0)),
                             0.8 * (1 - torch.sigmoid(z0 - beta * (l.logp - l.ref_logp))))
        got = losses.kto(w, l, kl_, beta=beta, desirable_weight=1.3, undesirable_weight=0.8)
        close(got.loss, torch.cat(want(w, l)))
        assert torch.autograd.grad(got.loss.sum(), kl_.logp, allow_unused=True, retain_graph=True) == (None,)
        hand = losses.grad_of("kto", w, l, kl_, beta=beta, desirable_weight=1.3, undesirable_weight=0.8)
        auto = gradients(sum(part.sum() for part in want(w, l)), w.logp, l.logp)
        close(hand.w, auto[0]), close(hand.l, auto[1])
        assert (hand.w < 0).all() and (hand.l > 0).all()  # descent raises the desirable, lowers the undesirable


@equation(22, "003, CPO", "−log σ(β log π(y_w) − β log π(y_l)) − log π(y_w)", "losses.cpo losses.d_cpo")
def test_e22_cpo():
    """DPO with a reference uniform over RESPONSES, plus SFT. One uniform over tokens, log U = -|y| log V, does not
    drop out."""
    check_loss("cpo", lambda w, l: torch.log(1 + torch.exp(-0.3 * (w.logp - l.logp))), beta=0.3)
    w, l = pairs()
    close(losses.cpo(w, l, alpha=0.7).nll, -0.7 * w.logp)
    assert losses.grad_of("cpo", w, l, alpha=0.7).nll_w == -0.7
    uniform = lambda s, value: s._replace(ref_logp=value.expand(8).double())
    over = lambda value_w, value_l: losses.dpo(uniform(w, value_w), uniform(l, value_l), beta=0.3).loss
    close(over(torch.tensor(-9.0), torch.tensor(-9.0)), losses.cpo(w, l, beta=0.3).loss)
    differs(over(-w.length * math.log(1024), -l.length * math.log(1024)), losses.cpo(w, l, beta=0.3).loss, by=1.0)


@equation(23, "000 (6), 003, 004 table 2, SimPO",
          "−log σ(β/|y_w| log π(y_w) − β/|y_l| log π(y_l) − γ)", "losses.simpo losses.d_simpo")
def test_e23_simpo():
    check_loss("simpo", lambda w, l: torch.log(1 + torch.exp(
        -(2.2 * w.logp / w.length - 2.2 * l.logp / l.length - 0.7))), beta=2.2, gamma=0.7)
    w, l = (same_length(s) for s in pairs())
    free = lambda s: s._replace(ref_logp=torch.zeros(8).double())
    close(losses.simpo(w, l, beta=2.0, gamma=0.0).loss, losses.dpo(free(w), free(l), beta=2.0 / 5).loss)


@equation(24, "004 table 2, LN-DPO",
          "DPO with both log-ratios divided by their length", "losses.ln_dpo losses.d_ln_dpo")
def test_e24_ln_dpo():
    check_loss("ln_dpo", lambda w, l: torch.log(1 + torch.exp(
        -1.3 * (w.logp - w.ref_logp) / w.length + 1.3 * (l.logp - l.ref_logp) / l.length)), beta=1.3)
    w, l = (same_length(s) for s in pairs())
    close(losses.ln_dpo(w, l, beta=2.0).loss, losses.dpo(w, l, beta=2.0 / 5).loss)


@equation(25, "004 (1)",
          "LN-DPO = SimPO with the margin β(log π_ref(y_w)/|y_w| − log π_ref(y_l)/|y_l|)", "losses.ln_dpo losses.simpo")
def test_e25_adaptive_margin():
    """(1) leaves out the beta and prints log(pi / |y|) for (log pi) / |y|."""
    w, l = pairs()
    margin = w.ref_logp / w.length - l.ref_logp / l.length
    close(losses.simpo(w, l, beta=2.5, gamma=2.5 * margin).loss, losses.ln_dpo(w, l, beta=2.5).loss)
    as_printed = (w.ref_logp - w.length.log()) - (l.ref_logp - l.length.log())
    for wrong in (margin, as_printed, 2.5 * as_printed):
        differs(losses.simpo(w, l, beta=2.5, gamma=wrong).loss, losses.ln_dpo(w, l, beta=2.5).loss, by=0.1)


@equation(26, "000 (7), 001 (P as a mean), 003, ORPO", "L_SFT − λ log σ(log OR), odds = P/(1 − P), log P the MEAN log-prob",
          "losses.orpo losses.log_odds losses.mean_logp")
def test_e26_orpo():
    """Finite at P = 1; at P = 1 - 1e-6 right to 1e-6 in float32, where log(1 - exp(x)) is off by 1e-3."""
    def odds(s):
        p = torch.exp(s.logp / s.length)
        return p / (1 - p)
    check_loss("orpo", lambda w, l: -w.logp / w.length - 0.7 * torch.log(
        torch.sigmoid(torch.log(odds(w) / odds(l)))), lam=0.7)
    w, l = pairs()
    close(losses.log_odds(w), odds(w).log())
    near = lambda x: Seq(torch.tensor([x]), None, torch.tensor([1]))
    assert losses.log_odds(near(0.0)).isfinite().all()
    assert losses.log_odds(near(-1e-6)).item() == pytest.approx(-math.log(math.expm1(1e-6)), rel=1e-6)


@equation(27, "001 (24)–(35)", "∇L_OR = −δ h, δ = 1/(1 + OR), h = ∇log P(y_w)/(1 − P(y_w)) − ∇log P(y_l)/(1 − P(y_l))",
          "losses.d_orpo")
def test_e27_gradient_of_the_odds_ratio():
    """In the parameters of a transformer, line by line; (24) to (28) have lost a minus, and (25) its grad log OR."""
    model = exact.transformer(1)
    parameters, logp = list(model.parameters()), exact.logps(model)
    grad = lambda value: torch.cat([g.flatten() for g in gradients(value, *parameters)])
    i, j = 3, 20
    p_w, p_l = (torch.exp(logp[0, y] / exact.LENGTHS[y]) for y in (i, j))
    odds = lambda p: p / (1 - p)
    OR = odds(p_w) / odds(p_l)
    g_or = grad(OR.log())
    lines = {24: grad(torch.sigmoid(OR.log()).log()), 25: torch.sigmoid(-OR.log()) * g_or,
             26: torch.sigmoid(OR.log()) * (1 - torch.sigmoid(OR.log())) / torch.sigmoid(OR.log()) * g_or,
             27: torch.sigmoid(-OR.log()) * g_or, 28: g_or / (1 + OR)}
    for line in lines.values():
        close(line, lines[24])
    close(g_or, grad(odds(p_w).log()) - grad(odds(p_l).log()))                                       # (30)
    g_p = grad(p_w.log())
    for line in (g_p - grad((1 - p_w).log()), g_p + grad(p_w) / (1 - p_w), g_p + p_w * g_p / (1 - p_w),
                 g_p * (1 + odds(p_w)), g_p / (1 - p_w)):                                            # (31) to (35)
        close(line, grad(odds(p_w).log()))
    delta, h = 1 / (1 + OR), g_p / (1 - p_w) - grad(p_l.log()) / (1 - p_l)
    w, l = (Seq(logp[:1, y], None, exact.LENGTHS[y][None]) for y in (i, j))
    loss = losses.orpo(w, l, lam=1.0).loss[0] + w.logp[0] / w.length[0]  # without the SFT term
    close(grad(loss), -delta * h), differs(grad(loss), delta * h, by=0.1)
    hand = losses.grad_of("orpo", w, l, lam=1.0)
    close((hand.w[0] + 1 / w.length[0].item()) * grad(w.logp[0]) + hand.l[0] * grad(l.logp[0]), grad(loss))


@equation(28, "001, OR against PR",
          "log OR is spread wider than log PR (uniform P: 2.57 against 1.41); for small P they are equal",
          "losses.log_odds losses.mean_logp")
def test_e28_odds_ratio_and_probability_ratio():
    """For uniform P, log PR has standard deviation sqrt 2 (Laplace) and log OR sqrt(2 pi^2 / 3) (two logistics); 2 %
    are at least four standard errors of 50,000 pairs."""
    def ratios(p):
        w, l = (Seq(column.log(), None, torch.ones(len(column))) for column in p)
        return losses.mean_logp(w) - losses.mean_logp(l), losses.log_odds(w) - losses.log_odds(l)
    p = torch.rand(2, 50_000, generator=generator(0), dtype=torch.float64)
    pr, odds = ratios(p)
    assert pr.std().item() == pytest.approx(math.sqrt(2), rel=0.02)
    assert odds.std().item() == pytest.approx(math.pi * math.sqrt(2 / 3), rel=0.02)
    pr, odds = ratios(1e-6 * p)
    close(odds, pr, atol=1e-6)  # log(1 - P) is at most 1e-6 each, and of one sign


@equation(29, "001, λ ablation",
          "the gap between chosen and rejected grows with λ", "losses.orpo world.exact.preference_loss")
def test_e29_lambda():
    """At the population optimum in the exact world, three seeds: mean log-prob per token, chosen minus rejected."""
    for seed in range(3):
        world = exact.world(seed)
        weight, gaps = exact.labels(world.reward), []
        for lam in (0.1, 0.5, 1.0):
            mean = exact.learnt(partial(losses.orpo, lam=lam), world, weight, steps=50) / exact.LENGTHS  # there in 25
            gaps.append((weight * (mean[:, :, None] - mean[:, None, :])).sum().item())
        assert gaps[0] + 0.02 < gaps[1] < gaps[2] - 0.02  # steps of 0.04 to 0.07


@equation(34, "papers cited in 004",
          "IPO, R-DPO, hinge, and the family f(β · margin) of GPO", "losses.ipo losses.r_dpo losses.hinge")
def test_e34_family():
    """GPO (arXiv:2402.05749): loss f(z), z = beta (D_w - D_l), gradients beta f'(z) and -beta f'(z)."""
    check_loss("ipo", lambda w, l: (w.log_ratio - l.log_ratio - 1 / 0.8) ** 2, tau=0.4, average=False)
    check_loss("ipo", lambda w, l: (w.log_ratio / w.length - l.log_ratio / l.length - 1 / 0.8) ** 2, tau=0.4)
    check_loss("r_dpo", lambda w, l: -torch.sigmoid(
        0.3 * (w.log_ratio - l.log_ratio) + 0.05 * (w.length - l.length).double()).log(), beta=0.3, alpha=0.05)
    check_loss("hinge", lambda w, l: (1 - 0.3 * (w.log_ratio - l.log_ratio)).clamp(min=0), beta=0.3)
    (w, l), beta = pairs(), 0.3
    z = beta * (w.log_ratio - l.log_ratio)
    slopes = {"dpo": (partial(losses.dpo, beta=beta), 1, -torch.sigmoid(-z)),
              "hinge": (partial(losses.hinge, beta=beta), 1, -(z < 1).double()),
              "ipo": (partial(losses.ipo, tau=beta / 2, average=False), beta ** 2, -2 * (1 - z))}
    for loss, scale, slope in slopes.values():
        g_w, g_l = gradients(scale * loss(w, l).loss.sum(), w.logp, l.logp)
        close(g_w, beta * slope), close(g_l, -beta * slope)


# ---- the table -----------------------------------------------------------------------------------------------------

STORIES = {"dpo": "A pair, the loss in five lines, its gradient, a training run; then where the loss comes from. Start here.",
           "reward_model": "What a preference says about a reward: Bradley–Terry, rankings, length.",
           "policy_gradient": "From expected reward to PPO: estimators, their variance, baselines.",
           "orpo": "What cross-entropy lacks, and what the odds ratio adds.",
           "kto": "Prospect theory and unpaired labels.",
           "simpo_lndpo": "Length, margins and the missing reference: SimPO, LN-DPO, CPO and relatives.",
           "errata": "Where the documents print something else, with the numbers that decide."}


@cache
def cells():
    """{13: {"dpo": ["8"]}}: in which cells of which notebooks an equation has a heading `### E13 · ...`."""
    found = {number: {} for number in EQUATIONS}
    for name in STORIES:
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        for i, cell in enumerate(notebook["cells"], start=1):
            for number in re.findall(r"^### E(\d+) · .+$", "".join(cell["source"]), re.M):
                found[int(number)].setdefault(name, []).append(str(i))
    return found


def place_of(name):
    """(the module or class that holds it, its name there) of "run.metrics.step_metrics", "model.Transformer.forward"; both must exist."""
    parts = name.split(".")
    deep = 2 if (ROOT / "nanopref" / parts[0]).is_dir() else 1  # how many of them are the module
    owner, found = None, importlib.import_module(".".join(["nanopref", *parts[:deep]]))
    for attribute in parts[deep:]:
        owner, found = found, getattr(found, attribute)
    return owner, attribute


def table():
    lines = ["# The notebooks", "",
             "Executed by the test suite, and stored with the output of such a run. All but errata end with exercises.", ""]
    lines += [f"- [`{name}.ipynb`]({name}.ipynb): {story}" for name, story in STORIES.items()]
    lines += ["", "## Every equation of the documents", "",
              "Printed by `python tests/test_equations.py`. Documents: 000 a course report on reward models and DPO, 001",
              "slides on RLHF, DPO and ORPO, 002 a blog post on DPO, 003 an alignment guide, 004 arXiv:2407.15229.",
              "Statements are the corrected ones; what the documents print instead is in [errata](errata.ipynb).",
              "Code is in `nanopref/`, tests are in [`tests/test_equations.py`](../tests/test_equations.py).", "",
              "| | source | statement | code | notebook, cell | test |", "| --- | --- | --- | --- | --- | --- |"]
    for number, (source, statement, code, test) in sorted(EQUATIONS.items()):
        where = ", ".join(f"[{name}]({name}.ipynb) {', '.join(numbers)}" for name, numbers in cells()[number].items())
        names = ", ".join(f"`{name}`" for name in code.split())
        statement = statement.replace("|", "\\|")  # a bar ends a cell of the table
        lines.append(f"| E{number} | {source} | {statement} | {names} | {where} | `{test.__name__}` |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("number", range(1, 35))
def test_every_equation_has_code_a_notebook_cell_and_a_test(number):
    assert number in EQUATIONS
    assert cells()[number], f"no notebook has a heading '### E{number} · ...'"
    for name in EQUATIONS[number].code.split():
        place_of(name)


def test_the_table_in_the_notebooks_folder_is_this_one():
    assert (ROOT / "notebooks/README.md").read_text() == table(), \
        "write it again: python tests/test_equations.py > notebooks/README.md"


if __name__ == "__main__":
    print(table(), end="")
