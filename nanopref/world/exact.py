"""A world small enough that every expectation is a sum: all responses listed, all numbers float64.

Two tokens, a and b, and the token that ends a response, here written "."; a response ends by itself or is cut after
MAX_LENGTH tokens. That makes 31 responses, and any policy's probabilities of them add up to 1. Nothing is sampled, so
an equation either holds to the last digits or it does not.

A table is an (X, Y) tensor: one row per prompt, one column per response. Policies are tables of log-probs in nats, got
from free logits (`tabular`) or from a small transformer (`logps`); the latter cannot become every table, since prompt a
continued by b is prompt ab. The losses are those of nanopref/losses.py.
"""
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from nanopref.batch import Example, collate
from nanopref.logps import sequence_logps
from nanopref.losses import Seq
from nanopref.model import Config, Transformer
from nanopref.reward import bradley_terry

A, B, END = TOKENS = 0, 1, 2
MAX_LENGTH = 4
PROMPTS = [A], [B], [A, B]
RESPONSES = ([[*start, END] for n in range(MAX_LENGTH) for start in product((A, B), repeat=n)]
             + [list(cut) for cut in product((A, B), repeat=MAX_LENGTH)])
NAMES = ["".join("ab."[token] for token in response) for response in RESPONSES]
LENGTHS = torch.tensor([len(response) for response in RESPONSES])  # (Y,) tokens, the end included


class World(NamedTuple):
    """Who judges and where the policy starts."""
    reward: Tensor    # (X, Y) the true reward: P(y beats y') = sigmoid(r(y) - r(y'))
    ref_logp: Tensor  # (X, Y) nats, the reference policy


def transformer(seed: int) -> Transformer:
    """A random float64 transformer of 2,724 parameters over the three tokens: far from uniform, so that no term of an
    equation is small by accident."""
    model = Transformer(Config(vocab_size=len(TOKENS), hidden_size=12, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def logps(model: Transformer) -> Tensor:
    """log pi(y|x) of every response to every prompt, (X, Y) nats, with gradient: by the layout that training uses."""
    batch = collate([Example(prompt, RESPONSES, [0] * len(RESPONSES)) for prompt in PROMPTS])
    return sequence_logps(model, batch).view(len(PROMPTS), len(RESPONSES))


def tabular(logits: Tensor) -> Tensor:
    """The policy with one free number per response: log softmax of (X, Y) logits."""
    return logits.log_softmax(-1)


def world(seed: int = 0) -> World:
    """Rewards drawn from N(0, 1), the reference a random transformer."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(len(PROMPTS), len(RESPONSES), generator=generator, dtype=torch.float64)
    return World(reward, logps(transformer(seed)).detach())


# ---- the RLHF objective and its optimum (slides (5)-(11), blog post, guide) --------------------------------------------

def expect(logp: Tensor, value: Tensor) -> Tensor:
    """E_{y ~ pi}[value(x, y)] per prompt, (X,)."""
    return (logp.exp() * value).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = E_p[log p - log q] of two tables of log-probs per prompt, (X,) nats."""
    return expect(p, p - q)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of |p - q|, at the prompt where it is largest: 0 for equal policies, 1 for disjoint ones."""
    return (p.exp() - q.exp()).abs().sum(-1).max().item() / 2


def objective(logp: Tensor, world: World, beta: float) -> Tensor:
    """E[r] - beta KL(pi || pi_ref), mean over prompts, in the reward's unit."""
    return (expect(logp, world.reward) - beta * kl(logp, world.ref_logp)).mean()


def log_z(world: World, beta: float) -> Tensor:
    """log Z(x) = log sum_y pi_ref(y|x) exp(r(x, y) / beta), (X,) nats; beta > 0."""
    return (world.ref_logp + world.reward / beta).logsumexp(-1)


def optimum(world: World, beta: float) -> Tensor:
    """log pi*(y|x) = log pi_ref(y|x) + r(x, y) / beta - log Z(x), (X, Y) nats."""
    return world.ref_logp + world.reward / beta - log_z(world, beta)[:, None]


# ---- preferences and what a loss learns from them ------------------------------------------------------------------

def preference(reward: Tensor) -> Tensor:
    """P(i beats j | x) = sigmoid(r_i - r_j) (Bradley-Terry) of every two responses, (X, Y, Y)."""
    return torch.sigmoid(reward[:, :, None] - reward[:, None, :])


def labels(reward: Tensor) -> Tensor:
    """The weight of "i was chosen over j" in an infinite data set in which all pairs are equally frequent, (X, Y, Y);
    adds up to 1."""
    different = ~torch.eye(reward.shape[-1], dtype=torch.bool)
    weight = preference(reward) * different
    return weight / weight.sum()


def draw_labels(reward: Tensor, n: int, seed: int) -> Tensor:
    """The same weights in a data set of n labelled pairs drawn at random, (X, Y, Y)."""
    weight = labels(reward)
    drawn = torch.multinomial(weight.flatten(), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return torch.bincount(drawn, minlength=weight.numel()).view(weight.shape).double() / n


def preference_loss(loss, logp: Tensor, ref_logp: Tensor, weight: Tensor) -> Tensor:
    """The expectation of a loss(w, l) of nanopref/losses.py over labelled pairs: weight (X, Y, Y) as from `labels`."""
    x, i, j = weight.nonzero(as_tuple=True)
    weight = weight[x, i, j]
    w, l = (Seq(logp[x, y], ref_logp[x, y], LENGTHS[y]) for y in (i, j))
    out = loss(w, l)
    value = (weight * out.loss).sum()
    return value if out.nll is None else value + (weight * out.nll).sum() / (weight * w.length).sum()


def reward_loss(reward: Tensor, weight: Tensor) -> Tensor:
    """The expectation of the reward model's loss over labelled pairs; reward (X, Y) is the model."""
    return (weight * bradley_terry(reward[:, :, None], reward[:, None, :])).sum()


def minimise(value, start: Tensor, steps: int = 1000) -> Tensor:
    """The table at which value(table) is smallest, by L-BFGS, a gradient descent that learns the curvature; it stops
    after `steps`, whether it has arrived or not."""
    table = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([table], max_iter=steps, history_size=50, tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = value(table)
        loss.backward()
        return loss

    optimizer.step(closure)
    return table.detach()


def learnt(loss, world: World, weight: Tensor, steps: int = 1000) -> Tensor:
    """The tabular policy at which a loss(w, l) of these labels is smallest, (X, Y) nats, searched from the reference."""
    value = lambda table: preference_loss(loss, tabular(table), world.ref_logp, weight)
    return tabular(minimise(value, world.ref_logp, steps))


# ---- the policy gradient (slides; E[grad log pi * A] and how noisy one sample of it is) ----------------------

def score_functions(logp: Tensor, parameters) -> Tensor:
    """grad log pi(y|x) of every response, (X, Y, P), by one backward pass each; P numbers in all `parameters`."""
    parameters = list(parameters)
    scores = []
    for value in logp.flatten():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True)  # one of each parameter's shape
        scores.append(torch.cat([gradient.flatten() for gradient in gradients]))  # (P,)
    return torch.stack(scores).view(*logp.shape, -1)


def policy_gradient(logp: Tensor, scores: Tensor, advantage: Tensor, behaviour: Tensor | None = None
                    ) -> tuple[Tensor, float]:
    """The estimator (pi / behaviour) * grad log pi * advantage of one response drawn from `behaviour` (default: the
    policy itself, ratio 1): its exact mean (P,) and total variance (a number, summed over parameters).

    logp, advantage and behaviour are (X, Y); scores (X, Y, P). The variance is over responses, mean over prompts."""
    behaviour = logp if behaviour is None else behaviour
    estimate = ((logp - behaviour).exp() * advantage)[..., None] * scores  # (X, Y, P)
    mean = torch.einsum("xy,xyp->xp", behaviour.exp(), estimate)
    mean_square = torch.einsum("xy,xyp->x", behaviour.exp(), estimate ** 2)
    return mean.mean(0), (mean_square - (mean ** 2).sum(-1)).mean().item()
