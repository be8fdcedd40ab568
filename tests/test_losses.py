"""Every loss against numbers worked by hand, its hand-derived gradient, its docstring and a world small enough to list.

The per-loss checks are plain functions of (module, loss name) so that test_mutants.py can run them on broken copies.
"""
import inspect
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mutants import MUTANTS
from torch.testing import assert_close

from nanopref import losses
from nanopref.errors import UserError

ROOT = Path(__file__).parent.parent
LOG2 = math.log(2)


class Asked(dict):
    """A table with a line per loss; where a new loss has none, the error lists all that it still lacks."""

    def __init__(self, what, lines):
        super().__init__(lines)
        self.what = what

    def __missing__(self, name):
        raise AssertionError(wanted(name))


# No default among them, so a knob that is ignored or used twice cannot hide behind the value 1 or 0.
ODD_KNOBS = Asked("its knobs, all away from their defaults", {
    "sft": {},
    "dpo": {"beta": 0.3, "label_smoothing": 0.2},
    "robust_dpo": {"beta": 0.3, "flip_rate": 0.2},
    "ipo": {"tau": 0.4, "average": False},
    "ln_dpo": {"beta": 1.3},
    "simpo": {"beta": 2.2, "gamma": 0.7},
    "cpo": {"beta": 0.3, "alpha": 0.5},
    "orpo": {"lam": 0.7},
    "r_dpo": {"beta": 0.3, "alpha": 0.05},
    "hinge": {"beta": 0.5},
    "dpop": {"beta": 0.3, "lam": 2.0},
    "kto": {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.8},
})


def call(m, name, seqs, **knobs):
    return m.LOSSES[name].fn(*(seqs[i] for i in m.LOSSES[name].inputs), **knobs)


def close(got, want, atol):
    got, want = (torch.as_tensor(value, dtype=torch.float64) for value in (got, want))
    assert_close(got, want, rtol=0, atol=atol)


def random_seqs(m, name, grad=False):
    """8 pairs of unequal lengths, log-ratios of both signs; kto gets 8 desirable, 5 undesirable, 3 mismatched."""
    g = torch.Generator().manual_seed(0)
    seqs = {}
    for key, n in zip(m.LOSSES[name].inputs, (8, 5, 3) if name == "kto" else (8, 8)):
        length = torch.randint(1, 13, (n,), generator=g)
        logp = -length * (0.2 + 2 * torch.rand(n, generator=g, dtype=torch.float64))
        ref = logp + 3 * torch.randn(n, generator=g, dtype=torch.float64) - (2 if key == "kl" else 0)  # so that z0 > 0
        seqs[key] = m.Seq(logp.requires_grad_(grad), ref, length)
    return seqs


def one(m, logp, ref_logp, length):
    return m.Seq(torch.tensor([logp], dtype=torch.float64), torch.tensor([ref_logp], dtype=torch.float64),
                 torch.tensor([length]))


# Pair A: chosen log pi = -4, log pi_ref = -6, 2 tokens: D = +2, mean -2.
#         rejected log pi = -6, log pi_ref = -5, 4 tokens: D = -1, mean -1.5.  D_w - D_l = 3.
# Pair B: A with chosen and rejected swapped. softplus(z) = log(1 + e^z) = -log sigmoid(-z).
# (loss, pair, knobs, loss value, chosen reward, rejected reward, nll)
HAND = [
    ("sft", "A", {}, 0.0, [], [], 4.0),  # nll is the sum, 4
    # z = 0.1 * 3 = 0.3; e^-0.3 = 0.740818; log 1.740818 = 0.554355
    ("dpo", "A", {"beta": 0.1}, 0.554355, 0.2, -0.1, None),
    # 0.9 * 0.554355 + 0.1 * softplus(0.3) = 0.498920 + 0.1 * 0.854355
    ("dpo", "A", {"beta": 0.1, "label_smoothing": 0.1}, 0.584355, 0.2, -0.1, None),
    # (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8 = 0.413484 / 0.8
    ("robust_dpo", "A", {"beta": 0.1, "flip_rate": 0.1}, 0.516855, 0.2, -0.1, None),
    # 2/2 - (-1/4) - 1/(2 * 0.5) = 0.25; squared. Rewards 0.5 * 1 and 0.5 * -0.25
    ("ipo", "A", {"tau": 0.5}, 0.0625, 0.5, -0.125, None),
    # 2 + 1 - 1 = 2; squared
    ("ipo", "A", {"tau": 0.5, "average": False}, 4.0, 1.0, -0.5, None),
    # z = 2 * (1 + 0.25) = 2.5; e^-2.5 = 0.082085; log 1.082085 = 0.078890
    ("ln_dpo", "A", {"beta": 2.0}, 0.078890, 2.0, -0.5, None),
    # z = 2 * (-2) - 2 * (-1.5) - 0.5 = -1.5; e^1.5 = 4.481689; log 5.481689 = 1.701413
    ("simpo", "A", {"beta": 2.0, "gamma": 0.5}, 1.701413, -4.0, -3.0, None),
    # z = 0.1 * (-4 + 6) = 0.2; e^-0.2 = 0.818731; log 1.818731 = 0.598139. nll = 0.5 * 4
    ("cpo", "A", {"beta": 0.1, "alpha": 0.5}, 0.598139, -0.4, -0.6, 2.0),
    # p = e^-2 = 0.135335: log odds -2 - log 0.864665 = -1.854587
    # q = e^-1.5 = 0.223130: log odds -1.5 - log 0.776870 = -1.247518
    # z = -0.607069; e^0.607069 = 1.835045; log 2.835045 = 1.042058; 2 + 0.5 * 1.042058
    ("orpo", "A", {"lam": 0.5}, 2.521029, -1.854587, -1.247518, None),
    # z = 0.3 + 0.05 * (2 - 4) = 0.2
    ("r_dpo", "A", {"beta": 0.1, "alpha": 0.05}, 0.598139, 0.2, -0.1, None),
    ("hinge", "A", {"beta": 0.1}, 0.7, 0.2, -0.1, None),  # 1 - 0.3
    ("hinge", "A", {"beta": 0.5}, 0.0, 1.0, -0.5, None),  # 1 - 1.5 < 0
    ("hinge", "B", {"beta": 0.1}, 1.3, -0.1, 0.2, None),  # 1 + 0.3
    ("dpop", "A", {"beta": 0.1, "lam": 2.0}, 0.554355, 0.2, -0.1, None),  # D_w > 0: no penalty, dpo
    # D_w = -1: z = 0.1 * (-3 - 2 * 1) = -0.5; e^0.5 = 1.648721; log 2.648721 = 0.974077
    ("dpop", "B", {"beta": 0.1, "lam": 2.0}, 0.974077, -0.1, 0.2, None),
    # kl is B's rejected side, D = +2: z0 = 0.2. 1 - sigmoid(0.2 - 0.2) = 0.5; 1.5 * (1 - sigmoid(0.2 + 0.1)) =
    # 1.5 * (1 - 0.574443) = 0.638336
    ("kto", "A", {"beta": 0.1, "undesirable_weight": 1.5}, [0.5, 0.638336], 0.2, -0.1, None),
    # kl has D = -1: z0 is held at 0. 2 * (1 - sigmoid(-0.1)) = 2 * 0.524979; 1 - sigmoid(-0.2) = 0.549834
    ("kto", "B", {"beta": 0.1, "desirable_weight": 2.0}, [1.049958, 0.549834], -0.1, 0.2, None),
]


def check_hand_worked(m, name):
    """Values worked by hand to 6 digits in the comments of HAND, hence the bound 2e-6."""
    assert any(row[0] == name for row in HAND), wanted(name)
    for loss, pair, knobs, value, reward_w, reward_l, nll in HAND:
        if loss == name:
            a, b = one(m, -4.0, -6.0, 2), one(m, -6.0, -5.0, 4)
            w, l = (a, b) if pair == "A" else (b, a)
            out = call(m, name, {"w": w, "l": l, "kl": w if name == "kto" else None}, **knobs)
            close(out.loss, torch.tensor(value).reshape(-1), 2e-6)
            close(out.chosen_rewards, torch.tensor(reward_w).reshape(-1), 2e-6)
            close(out.rejected_rewards, torch.tensor(reward_l).reshape(-1), 2e-6)
            assert (out.nll is None) == (nll is None)
            if nll is not None:
                close(out.nll, [nll], 2e-6)


def check_gradient(m, name):
    """Hand gradient = autograd (only rounding apart, 1e-12) = central differences, at the defaults and at odd knobs.

    Central differences with h = 1e-4 err by h^2 f'''/6 ~ 1e-9 and by rounding ~ 1e-13 / h = 1e-9; the bound is 1e-7.
    They move one example at a time and difference the SUM, so a loss that leaks between examples shows too."""
    for knobs in ({}, ODD_KNOBS[name]):
        seqs = random_seqs(m, name, grad=True)
        out, hand = call(m, name, seqs, **knobs), m.grad_of(name, **seqs, **knobs)
        for key, want in zip("wl", (hand.w, hand.l)):
            if key not in seqs:
                continue
            auto = torch.zeros(len(want))
            if out.loss.requires_grad:
                auto, = torch.autograd.grad(out.loss.sum(), seqs[key].logp, retain_graph=True, materialize_grads=True)
            close(auto, want.detach(), 1e-12)
            for i in range(len(want)):
                side = []
                for h in (1e-4, -1e-4):
                    moved = seqs[key].logp.detach().clone()
                    moved[i] += h
                    side.append(call(m, name, {**seqs, key: seqs[key]._replace(logp=moved)}, **knobs).loss.sum().item())
                close((side[0] - side[1]) / 2e-4, want[i].item(), 1e-7)
        if out.nll is not None:
            auto, = torch.autograd.grad(out.nll.sum(), seqs["w"].logp, materialize_grads=True)
            close(auto, torch.full_like(auto, hand.nll_w), 1e-12)
        if "kl" in seqs:  # z0 is a constant of the step: the mismatched responses must not be trained
            leak, = torch.autograd.grad(out.loss.sum(), seqs["kl"].logp, materialize_grads=True)
            assert not leak.any()


# At ODD_KNOBS, policy = reference, chosen 2 tokens and rejected 6, one nat per token (cpo: 6 nats each).
AT_REFERENCE = Asked("its value at policy = reference with ODD_KNOBS", {
    "sft": 0.0, "dpo": LOG2, "robust_dpo": LOG2, "ipo": 1 / (4 * 0.4**2), "ln_dpo": LOG2,
    "simpo": math.log(1 + math.exp(0.7)), "cpo": LOG2, "orpo": 1 + 0.7 * LOG2,
    "r_dpo": math.log(1 + math.exp(-0.05 * (2 - 6))), "hinge": 1.0, "dpop": LOG2, "kto": [1.3 / 2, 0.8 / 2],
})


def check_at_reference(m, name):
    """The docstring's value at pi = pi_ref, exact up to float64 rounding."""
    w = one(m, -6.0, -6.0, 2) if name == "cpo" else one(m, -2.0, -2.0, 2)
    l = one(m, -6.0, -6.0, 6)
    out = call(m, name, {"w": w, "l": l, "kl": l}, **ODD_KNOBS[name])
    close(out.loss, torch.tensor(AT_REFERENCE[name], dtype=torch.float64).reshape(-1), 1e-12)


def check_reference_use(m, name):
    """Declared: moving the reference moves every example's loss. Not declared: the loss runs without any reference."""
    seqs = random_seqs(m, name)
    loss = call(m, name, seqs, **ODD_KNOBS[name]).loss
    if m.LOSSES[name].reference:
        for key in seqs:
            moved = {**seqs, key: seqs[key]._replace(ref_logp=seqs[key].ref_logp + 0.1)}
            changed = (call(m, name, moved, **ODD_KNOBS[name]).loss - loss).abs() > 1e-9
            want = {"w": slice(0, 8), "l": slice(8, None)}.get(key, slice(None)) if name == "kto" else slice(None)
            assert changed.any() and (changed | (loss == 0))[want].all()  # where it is 0, a hinge is flat
    else:
        without = {key: s._replace(ref_logp=None) for key, s in seqs.items()}
        assert torch.equal(call(m, name, without, **ODD_KNOBS[name]).loss, loss)


# The loss as a function of the two logged rewards (and of what the reward leaves out).
FROM_REWARDS = Asked("its loss as a function of the two logged rewards", {
    "dpo": lambda r, q, s, k: 0.8 * F.softplus(q - r) + 0.2 * F.softplus(r - q),
    "robust_dpo": lambda r, q, s, k: (0.8 * F.softplus(q - r) - 0.2 * F.softplus(r - q)) / 0.6,
    "ipo": lambda r, q, s, k: ((r - q - 0.5) / k["tau"]) ** 2,
    "ln_dpo": lambda r, q, s, k: F.softplus(q - r),
    "simpo": lambda r, q, s, k: F.softplus(q - r + k["gamma"]),
    "cpo": lambda r, q, s, k: F.softplus(q - r),
    "orpo": lambda r, q, s, k: -s["w"].logp / s["w"].length + k["lam"] * F.softplus(q - r),
    "r_dpo": lambda r, q, s, k: F.softplus(q - r - k["alpha"] * (s["w"].length - s["l"].length).double()),
    "hinge": lambda r, q, s, k: (1 - r + q).clamp(min=0),
    "dpop": lambda r, q, s, k: F.softplus(q - r + k["lam"] * (-r).clamp(min=0)),
    "kto": lambda r, q, s, k: torch.cat([
        k["desirable_weight"] * torch.sigmoid(k["beta"] * (s["kl"].logp - s["kl"].ref_logp).mean() - r),
        k["undesirable_weight"] * torch.sigmoid(q - k["beta"] * (s["kl"].logp - s["kl"].ref_logp).mean())]),
})


def check_rewards(m, name):
    """The logged rewards, beta included, are the ones inside the loss; and logging holds on to no graph."""
    seqs = random_seqs(m, name, grad=True)
    out = call(m, name, seqs, **ODD_KNOBS[name])
    r, q = out.chosen_rewards, out.rejected_rewards
    assert not r.requires_grad and not q.requires_grad
    if name == "sft":
        assert len(r) == len(q) == 0
    else:
        close(out.loss.detach(), FROM_REWARDS[name](r, q, seqs, ODD_KNOBS[name]).detach(), 1e-12)


def check_batch_order(m, name):
    """A permuted batch gives the permuted result, and a pair alone what it gives in company.

    1e-14 is a few last bits: a mean over kl in another order, vectorised against scalar code."""
    seqs = random_seqs(m, name)
    pick = lambda s, i: m.Seq(*(t[i] for t in s))
    out = call(m, name, seqs)
    back = call(m, name, {key: pick(s, torch.arange(len(s.logp) - 1, -1, -1)) for key, s in seqs.items()})
    whole = torch.cat([out.loss[:8].flip(0), out.loss[8:].flip(0)])
    close(back.loss, whole, 1e-14)
    first = call(m, name, {key: s if key == "kl" else pick(s, slice(0, 1)) for key, s in seqs.items()})
    close(first.loss[0], out.loss[0], 1e-14)


def check_antisymmetry(m, name):
    """What a loss of r_w - r_l gives the chosen response it takes from the rejected one, per nat or per mean nat."""
    per_nat = {"dpo", "robust_dpo", "cpo", "r_dpo", "hinge", "ipo"}
    for knobs in ({}, ODD_KNOBS[name]):
        seqs = random_seqs(m, name, grad=True)
        per_token = name in ("ln_dpo", "simpo") or (name == "ipo" and not knobs)  # ipo averages by default
        if name not in per_nat and not per_token:
            return
        total = call(m, name, seqs, **knobs).loss.sum()
        g_w, g_l = torch.autograd.grad(total, [seqs["w"].logp, seqs["l"].logp], materialize_grads=True)
        assert g_w.any()
        if per_token:
            g_w, g_l = g_w * seqs["w"].length, g_l * seqs["l"].length
        close(g_w, -g_l, 1e-12)


def check_extremes(m, name):
    """float32 from certain (0) through almost certain (-1e-9) to hopeless (-1000): nothing is NaN or infinite."""
    values = [0.0, -1e-9, -1e-3, -1.0, -50.0, -800.0, -1000.0]
    grid = torch.tensor([(a, b, c, d) for a in values for b in values for c in values[::3] for d in values[::3]]).T
    for n_w, n_l in ((1, 1), (1, 50)):
        seqs = {}
        for key, a, b, n in (("w", 0, 2, n_w), ("l", 1, 3, n_l), ("kl", 0, 3, 1)):
            if key in m.LOSSES[name].inputs:
                seqs[key] = m.Seq(grid[a].clone().requires_grad_(), grid[b], torch.full((grid.shape[1],), n))
        out, hand = call(m, name, seqs), m.grad_of(name, **seqs)
        assert out.loss.isfinite().all() and (out.nll is None or out.nll.isfinite().all())
        assert out.chosen_rewards.isfinite().all() and out.rejected_rewards.isfinite().all()
        if out.loss.requires_grad:
            auto = torch.autograd.grad(out.loss.sum(), [seqs["w"].logp, seqs["l"].logp], materialize_grads=True)
            for got, want in zip(auto, (hand.w, hand.l)):
                assert got.isfinite().all()
                assert_close(got, want.detach(), rtol=1e-4, atol=1e-6)  # a few float32 roundings of sigmoids near 1


# A world that can be listed: 2 prompts, tokens a b EOS, after two tokens EOS is forced. 7 responses per prompt.
# A response is its (prefix, token) choices; prefixes: 0 = nothing, 1 = a, 2 = b; tokens: 0 = a, 1 = b, 2 = EOS.
CHOICES = [[(0, 2)], [(0, 0), (1, 2)], [(0, 1), (2, 2)], [(0, 0), (1, 0)], [(0, 0), (1, 1)], [(0, 1), (2, 0)],
           [(0, 1), (2, 1)]]
LENGTHS = torch.tensor([1, 2, 2, 3, 3, 3, 3])  # EOS included
COUNTS = torch.zeros(7, 3, 3, dtype=torch.float64)
for response, choices in enumerate(CHOICES):
    for choice in choices:
        COUNTS[response][choice] = 1


def all_logps(logits):
    """logits (2 prompts, 3 prefixes, 3 tokens) -> log pi of every response, (2, 7)."""
    return torch.einsum("xpt,ypt->xy", torch.log_softmax(logits, -1), COUNTS)


def check_bandit(m, name):
    """Thirty gradient steps raise the policy's true expected reward by 0.2 or more (rewards are N(0, 1)).

    Data: every pair of every prompt, the truly better response chosen; kto: above the prompt's median or not, and z0
    from every response under both prompts. Steps have fixed length 0.1, so that no loss needs its own learning rate;
    the least any loss gains is 0.28. sft can do it because a response is chosen as often as it wins and the start is
    worse than that."""
    g = torch.Generator().manual_seed(0)
    true_reward = torch.randn(2, 7, generator=g, dtype=torch.float64)
    logits = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    ref = all_logps(logits).detach()
    assert abs(ref.exp().sum().item() - 2) < 1e-12  # the 7 responses are all there are
    x, i, j = (true_reward[:, :, None] > true_reward[:, None, :]).nonzero(as_tuple=True)
    good = true_reward > true_reward.median(dim=1, keepdim=True).values

    def expected_reward():
        return (all_logps(logits).exp() * true_reward).sum(1).mean().item()

    before = expected_reward()
    for _ in range(30):
        logp, length = all_logps(logits), LENGTHS.expand(2, 7)
        of = lambda *index: m.Seq(logp[index], ref[index], length[index])
        seqs = {"w": of(x, i), "l": of(x, j)}
        if name == "kto":
            seqs = {"w": of(good), "l": of(~good), "kl": of(torch.ones_like(good))}
        out = call(m, name, seqs)
        step, = torch.autograd.grad(m.reduce(out, n_tokens=length[x, i].sum().item()), logits)
        with torch.no_grad():
            logits -= 0.1 * step / step.norm().clamp(min=1e-12)
    assert expected_reward() > before + 0.2


CHECKS = [check_hand_worked, check_gradient, check_at_reference, check_reference_use, check_rewards, check_batch_order,
          check_antisymmetry, check_extremes, check_bandit]


# ---- what a new loss needs ------------------------------------------------------------------------------------------

def missing(name) -> list[str]:
    """What a loss still lacks outside of its formula, a line each: file, place, what to write there."""
    lines = []
    if name in losses.LOSSES:
        fn, doc = losses.LOSSES[name].fn, losses.LOSSES[name].fn.__doc__ or ""
        parts = {"Knobs: ": "each with its unit", "At pi = pi_ref: ": "the value of the loss there",
                 "Needs: ": "pairs and reference, or what else", "Differs: ": "from its relatives, from published code"}
        lines += [f"nanopref/losses.py, docstring of {fn.__name__}: {part}... {what}" for part, what in parts.items()
                  if part not in doc and (part != "Knobs: " or losses.knobs(name))]
    tables = {"ODD_KNOBS": ODD_KNOBS, "AT_REFERENCE": AT_REFERENCE, "FROM_REWARDS": FROM_REWARDS}
    lines += [f"tests/test_losses.py, {place}: {table.what}" for place, table in tables.items()
              if name not in table and (name != "sft" or place != "FROM_REWARDS")]  # it has no rewards
    if name not in [row[0] for row in HAND]:
        lines.append("tests/test_losses.py, HAND: at least one line of values worked by hand")
    if name not in [mutant.loss for mutant in MUTANTS]:
        lines.append("tests/mutants.py, MUTANTS: at least one bug that one could write, which the checks must notice")
    for row in losses.table().splitlines():
        for readme in sorted(ROOT.glob("README*.md")) if row.split()[:1] == [name] else ():
            if row not in readme.read_text():
                lines.append(f"{readme.name}, table of losses (python -m nanopref.losses): {row}")
    return lines


def wanted(name) -> str:
    """All of it as one message."""
    return "\n  ".join([f"new loss {name!r} still wants", *missing(name)])


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_has_all_that_is_asked_of_it(name):
    if missing(name):
        pytest.fail(wanted(name), pytrace=False)


def test_a_new_loss_is_told_all_that_it_lacks_at_once(monkeypatch):
    def novel(w, l, *, beta=0.1):
        """-log sigmoid(beta (D_w - D_l)). Needs: pairs and reference."""
        return losses.dpo(w, l, beta=beta)

    def d_novel(w, l, *, beta):
        return losses.d_dpo(w, l, beta=beta, label_smoothing=0.0)

    monkeypatch.setitem(losses.LOSSES, "novel", losses.Loss(novel, d_novel, reference=True, pairs=True))
    places = [line.split(": ")[0] for line in missing("novel")]
    assert places[:8] == [
        *["nanopref/losses.py, docstring of novel"] * 3, "tests/test_losses.py, ODD_KNOBS",
        "tests/test_losses.py, AT_REFERENCE", "tests/test_losses.py, FROM_REWARDS", "tests/test_losses.py, HAND",
        "tests/mutants.py, MUTANTS"]
    assert places[8] == "README.md, table of losses (python -m nanopref.losses)"
    with pytest.raises(pytest.fail.Exception) as error:
        test_a_loss_has_all_that_is_asked_of_it("novel")
    assert all(line in str(error.value) for line in missing("novel"))
    for check in (check_hand_worked, check_gradient, check_at_reference, check_rewards):  # and whichever fails first
        with pytest.raises(AssertionError, match="(?s)new loss 'novel'.*HAND.*MUTANTS"):
            check(losses, "novel")


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_loss(check, name):
    check(losses, name)


# ---- identities between losses, float64, so 1e-12 is rounding -------------------------------------------------------

def test_ln_dpo_is_simpo_with_the_references_margin():
    """gamma of a pair = beta * (mean ref log-prob of w - that of l). arXiv:2407.15229 eq. 1 leaves out the beta."""
    seqs = random_seqs(losses, "ln_dpo")
    w, l = seqs["w"], seqs["l"]
    margin = w.ref_logp / w.length - l.ref_logp / l.length
    want = losses.ln_dpo(w, l, beta=2.5).loss
    close(losses.simpo(w, l, beta=2.5, gamma=2.5 * margin).loss, want, 1e-12)
    assert (losses.simpo(w, l, beta=2.5, gamma=margin).loss - want).abs().max() > 0.1  # the printed equation


def test_equal_lengths_ln_dpo_is_dpo_with_beta_over_length_and_simpo_the_same_without_reference():
    w, l = (s._replace(length=torch.full((8,), 5)) for s in random_seqs(losses, "dpo").values())
    close(losses.ln_dpo(w, l, beta=2.0).loss, losses.dpo(w, l, beta=0.4).loss, 1e-12)
    w, l = (s._replace(ref_logp=torch.zeros(8, dtype=torch.float64)) for s in (w, l))
    close(losses.simpo(w, l, beta=2.0, gamma=0.0).loss, losses.dpo(w, l, beta=0.4).loss, 1e-12)


def test_cpo_is_dpo_with_a_uniform_reference_plus_sft():
    """A reference that gives both responses the same log-prob, here 8 tokens of log(1/17) each, drops out."""
    seqs = random_seqs(losses, "cpo")
    w, l = (s._replace(ref_logp=torch.full((8,), -8 * math.log(17), dtype=torch.float64)) for s in seqs.values())
    close(losses.cpo(w, l, beta=0.2).loss, losses.dpo(w, l, beta=0.2).loss, 1e-12)
    close(losses.cpo(w, l, beta=0.2).nll, losses.sft(w).nll, 1e-12)


def test_robust_dpo_over_flipped_labels_is_clean_dpo():
    seqs = random_seqs(losses, "dpo")
    w, l = seqs["w"], seqs["l"]
    kept, flipped = (losses.robust_dpo(*pair, beta=0.3, flip_rate=0.2).loss for pair in ((w, l), (l, w)))
    close(0.8 * kept + 0.2 * flipped, losses.dpo(w, l, beta=0.3).loss, 1e-12)


def test_label_smoothing_is_lowest_at_its_stated_margin():
    """Zero gradient at z = log((1 - eps) / eps) = log 9 for eps = 0.1."""
    w, l = one(losses, math.log(9) / 0.1 - 50, -50.0, 7), one(losses, -40.0, -40.0, 7)
    close(losses.grad_of("dpo", w, l, label_smoothing=0.1).w, [0.0], 1e-12)


def test_knobs_at_zero_reduce_to_dpo():
    seqs = random_seqs(losses, "dpo")
    w, l = seqs["w"], seqs["l"]
    want = losses.dpo(w, l).loss
    for got in (losses.r_dpo(w, l, alpha=0.0), losses.dpop(w, l, lam=0.0), losses.robust_dpo(w, l, flip_rate=0.0)):
        close(got.loss, want, 1e-12)


def test_dpop_kink_has_gradient_of_dpo():
    """At pi = pi_ref the penalty starts; autograd and the hand gradient both take slope 0 there."""
    w, l = one(losses, -3.0, -3.0, 2), one(losses, -4.0, -4.0, 3)
    w.logp.requires_grad_()
    auto, = torch.autograd.grad(losses.dpop(w, l).loss.sum(), w.logp)
    close(auto, [-0.05], 1e-12)
    close(losses.grad_of("dpop", w, l).w.detach(), [-0.05], 1e-12)


@pytest.mark.parametrize("empty", ["w", "l"])
def test_kto_without_one_of_the_labels(empty):
    """All-good or all-bad micro-batches happen: the other label's terms are unchanged, nothing is NaN."""
    seqs = random_seqs(losses, "kto", grad=True)
    full = losses.kto(**seqs).loss
    none = losses.Seq(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    out = losses.kto(**{**seqs, empty: none})
    close(out.loss.detach(), full[8:].detach() if empty == "w" else full[:8].detach(), 1e-12)
    assert losses.reduce(out).isfinite()
    with pytest.raises(ValueError, match="kl"):
        losses.kto(seqs["w"], seqs["l"], none)


# ---- what surrounds the formulas ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["sft", "cpo", "dpo"])
def test_micro_batches_add_up_to_the_batch(name):
    """With the step's own counts; a mean of micro-batch means would be off, the responses have unequal lengths."""
    seqs = random_seqs(losses, name)
    n_tokens = seqs["w"].length.sum().item()
    whole = losses.reduce(call(losses, name, seqs), n_tokens=n_tokens)
    parts = [call(losses, name, {k: losses.Seq(*(t[part] for t in s)) for k, s in seqs.items()})
             for part in (slice(0, 3), slice(3, 8))]
    close(sum(losses.reduce(out, n_pairs=8, n_tokens=n_tokens) for out in parts), whole, 1e-12)
    if name != "dpo":
        with pytest.raises(ValueError, match="n_tokens"):
            losses.reduce(parts[0])


@pytest.mark.parametrize("name", [name for name, entry in losses.LOSSES.items() if entry.pairs])
def test_unequal_shapes_are_refused(name):
    seqs = random_seqs(losses, name)
    with pytest.raises(ValueError, match="shape"):
        call(losses, name, {"w": seqs["w"], "l": losses.Seq(*(t[:1] for t in seqs["l"]))})
    with pytest.raises(ValueError, match="shape"):  # (8,) - (8, 1) would broadcast to (8, 8)
        call(losses, name, {"w": seqs["w"], "l": seqs["l"]._replace(logp=seqs["l"].logp[:, None])})


@pytest.mark.parametrize("name", losses.LOSSES)
def test_registry_line_docstring_and_signatures_agree(name):
    entry = losses.LOSSES[name]
    assert entry.fn.__name__ == name and entry.grad.__name__ == f"d_{name}"
    needs = entry.fn.__doc__.split("Needs: ")[1].split("Differs: ")[0].split(".")[0]
    assert ("reference" in needs) == entry.reference and needs.startswith("pairs") == entry.pairs
    grad_knobs = [p for p in inspect.signature(entry.grad).parameters.values() if p.kind == p.KEYWORD_ONLY]
    assert [p.name for p in grad_knobs] == list(losses.knobs(name))
    assert all(p.default is p.empty for p in grad_knobs)  # defaults live in the loss alone
    assert list(ODD_KNOBS[name]) == list(losses.knobs(name))
    assert losses.check_knobs(name, ODD_KNOBS[name]) == ODD_KNOBS[name]
    for knob in losses.knobs(name):
        assert knob in entry.fn.__doc__.split("Knobs: ")[1].split("At pi")[0].replace("the weights", knob)


@pytest.mark.parametrize("name, knob, value, message", [
    ("dpo", "gamma", 0.5, "beta, label_smoothing"),
    ("dpo", "beta", 0.0, "above 0"),
    ("dpo", "beta", math.nan, "above 0"),
    ("dpo", "beta", "0.1", "a number"),
    ("dpo", "label_smoothing", 0.5, r"\[0, 0.5\)"),
    ("robust_dpo", "flip_rate", -0.1, r"\[0, 0.5\)"),
    ("simpo", "gamma", math.inf, "finite"),
    ("simpo", "gamma", -1.0, "at least 0"),
    ("ipo", "average", 1, "True or False"),
    ("sft", "beta", 0.1, "none"),
    ("dop", "beta", 0.1, "choose from"),
])
def test_bad_knobs_are_named_in_one_line(name, knob, value, message):
    with pytest.raises(UserError, match=message) as error:
        losses.check_knobs(name, {knob: value})
    assert "\n" not in str(error.value)


def test_table_shows_computed_values():
    """dpo: loss log 2 = 0.6931, gradients -+ beta / 2 = 0.05; simpo at equal means: log(1 + e^1.2) = 1.4633."""
    rows = {line.split()[0]: line.split() for line in losses.table().splitlines() if line}
    assert rows["dpo"][1:6] == ["yes", "yes", "0.6931", "-0.0500", "0.0500"]
    assert rows["simpo"][1:4] == ["no", "yes", "1.4633"]


def test_the_odds_are_exact_up_to_the_last_float():
    """At p = 1 - 1e-5 and at 1 - 1e-12 the odds are 1e5 and 1e12; only at 1 itself are they held."""
    for short in (1e-5, 1e-12):
        logp = torch.tensor([math.log1p(-short)], dtype=torch.float64, requires_grad=True)
        odds = losses.log_odds(losses.Seq(logp, None, torch.tensor([1])))
        assert odds.item() == pytest.approx(-math.log(short), rel=1e-3)
        assert torch.autograd.grad(odds, logp)[0].item() == pytest.approx(1 / short, rel=1e-3)
