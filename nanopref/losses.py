"""Every preference loss as one plain function of summed log-probs, its gradient derived by hand right below it.

A loss never sees tokens: it gets `Seq`s, divides by the length in its own line if it divides at all, and says in its
docstring what its knobs are measured in. w is the chosen response, l the rejected one, as in the papers; outside this
file they are called chosen and rejected. Reading order of a docstring: source, formula, knobs, value at pi = pi_ref,
needs, neighbour. In the formulas D = log pi - log pi_ref, |y| = length, and r is the implicit reward that gets logged.
Rewards are computed first and the loss is built from them, so what is logged is what is optimised.

To add a loss: write `name`, write `d_name`, add one line to LOSSES. `python -m nanopref.losses` prints the table.
"""
import inspect
import math
import textwrap
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanopref.errors import UserError


class Seq(NamedTuple):
    """B responses. The two log-probs are SUMS over the response tokens, EOS included, prompt and padding excluded."""
    logp: Tensor  # (B,) nats, under the policy
    ref_logp: Tensor | None  # (B,) nats, under the reference, no gradient; None if the loss needs no reference
    length: Tensor  # (B,) tokens, EOS included, >= 1

    @property
    def log_ratio(self) -> Tensor:
        """D = log pi - log pi_ref, (B,) nats."""
        return self.logp - self.ref_logp


class Out(NamedTuple):
    loss: Tensor  # (B,) nats per pair (per example for kto); averaged over all pairs of the optimiser step
    chosen_rewards: Tensor  # (B_w,) detached, beta included
    rejected_rewards: Tensor  # (B_l,) detached, beta included
    nll: Tensor | None = None  # (B,) nats SUMMED over chosen tokens; averaged over all chosen TOKENS of the step


class Grad(NamedTuple):
    w: Tensor  # (B_w,) d loss_i / d log pi(w_i)
    l: Tensor  # (B_l,) d loss_i / d log pi(l_i)
    nll_w: float = 0.0  # d nll_i / d log pi(w_i)


def reduce(out: Out, n_pairs: int | None = None, n_tokens: int | None = None) -> Tensor:
    """The scalar to call backward on: loss.sum() / n_pairs + nll.sum() / n_tokens.

    Under gradient accumulation pass the counts of the whole optimiser step: micro-batches then add up exactly, which a
    mean of micro-batch means does not. n_pairs defaults to this batch's; n_tokens (chosen tokens) is required if the
    loss has an nll, else ValueError."""
    total = out.loss.sum() / (n_pairs or len(out.loss))
    if out.nll is None:
        return total
    if not n_tokens:
        raise ValueError("this loss has an nll term: pass n_tokens, the number of chosen tokens of the step")
    return total + out.nll.sum() / n_tokens


def check_shapes(*seqs: Seq) -> None:
    """ValueError unless all are (B,) with one B: otherwise (B,) against (B, 1) would silently broadcast to (B, B)."""
    shapes = [tuple(t.shape) for s in seqs for t in s if t is not None]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"expected tensors of one shape (B,), got {shapes}")


def sft(w):
    """Supervised fine-tuning on the chosen responses: maximum likelihood.

    nll = -log pi(w), averaged over tokens
    Knobs: none.
    At pi = pi_ref: the reference's own loss in nats per token. Needs: chosen responses only.
    Differs: never sees a rejected response, and has no implicit reward to log."""
    check_shapes(w)
    none = w.logp.new_zeros(0)
    return Out(torch.zeros_like(w.logp), none, none, nll=-w.logp)


def d_sft(w):
    return Grad(torch.zeros_like(w.logp), w.logp.new_zeros(0), nll_w=-1.0)


def dpo(w, l, *, beta=0.1, label_smoothing=0.0):
    """DPO, arXiv:2305.18290 eq. 7; with eps = label_smoothing > 0 conservative DPO (Mitchell, 2023).

    -(1 - eps) log sigmoid(z) - eps log sigmoid(-z),   z = r_w - r_l,   r = beta D
    Knobs: beta in 1/nat (of a whole response), 0.1 as in the paper: 0.05 scored best in arXiv:2407.15229, but the
        spread between runs grows as beta falls; label_smoothing = share of flipped labels, stops z at log((1-eps)/eps).
    At pi = pi_ref: log 2. Needs: pairs, reference.
    Differs: the start of the family. Sees only a difference, so both log-probs may fall together."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    z = r_w - r_l
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return Out(loss, r_w.detach(), r_l.detach())


def d_dpo(w, l, *, beta, label_smoothing):
    z = beta * (w.log_ratio - l.log_ratio)
    dz = -(1 - label_smoothing) * torch.sigmoid(-z) + label_smoothing * torch.sigmoid(z)
    return Grad(beta * dz, -beta * dz)


def robust_dpo(w, l, *, beta=0.1, flip_rate=0.1):
    """Robust DPO, arXiv:2403.00409.

    (-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)) / (1 - 2 eps),   z = r_w - r_l,   r = beta D,   eps = flip_rate
    Knobs: beta in 1/nat; flip_rate = share of labels that are wrong.
    At pi = pi_ref: log 2. Needs: pairs, reference.
    Differs: dpo's smoothing with the other sign: its mean over randomly flipped labels is the dpo loss of the clean
        ones. Not bounded below: a negative loss is normal."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    z = r_w - r_l
    loss = (-(1 - flip_rate) * F.logsigmoid(z) + flip_rate * F.logsigmoid(-z)) / (1 - 2 * flip_rate)
    return Out(loss, r_w.detach(), r_l.detach())


def d_robust_dpo(w, l, *, beta, flip_rate):
    z = beta * (w.log_ratio - l.log_ratio)
    dz = (-(1 - flip_rate) * torch.sigmoid(-z) - flip_rate * torch.sigmoid(z)) / (1 - 2 * flip_rate)
    return Grad(beta * dz, -beta * dz)


def ipo(w, l, *, tau=1.0, average=True):
    """IPO, arXiv:2310.12036 eq. 17; average divides each log-ratio by its own length, as its authors advise.

    (d_w - d_l - 1 / (2 tau))^2,   d = D / |y| (D if not average),   r = tau d
    Knobs: tau in tokens/nat (1/nat if not average): d_w - d_l is pulled to 1 / (2 tau), so 1.0 asks for half a nat
        per token, 15 nats over 30 tokens; the usual 0.1 asks for 5 nats per token, out of reach (5 nats in sum).
    At pi = pi_ref: 1 / (4 tau^2), in nats squared. Needs: pairs, reference.
    Differs: from dpo in that it has a target margin: it pushes back once past it, where dpo only pushes less."""
    check_shapes(w, l)
    d_w, d_l = w.log_ratio, l.log_ratio
    if average:
        d_w, d_l = d_w / w.length, d_l / l.length
    return Out((d_w - d_l - 1 / (2 * tau)) ** 2, tau * d_w.detach(), tau * d_l.detach())


def d_ipo(w, l, *, tau, average):
    n_w, n_l = (w.length, l.length) if average else (1, 1)
    u = w.log_ratio / n_w - l.log_ratio / n_l - 1 / (2 * tau)
    return Grad(2 * u / n_w, -2 * u / n_l)


def ln_dpo(w, l, *, beta=2.0):
    """LN-DPO, arXiv:2407.15229 table 2 (also arXiv:2411.15124 eq. 6): length-normalised DPO.

    -log sigmoid(r_w - r_l),   r = beta D / |y|
    Knobs: beta in tokens/nat. About |y| times a dpo beta: with 0.1 the loss would hardly leave log 2.
    At pi = pi_ref: log 2. Needs: pairs, reference.
    Differs: from dpo by the division; from simpo by the reference, which acts as a margin of its own for every pair."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio / w.length, beta * l.log_ratio / l.length
    return Out(-F.logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())


def d_ln_dpo(w, l, *, beta):
    dz = -torch.sigmoid(-beta * (w.log_ratio / w.length - l.log_ratio / l.length))
    return Grad(beta * dz / w.length, -beta * dz / l.length)


def simpo(w, l, *, beta=1.5, gamma=1.2):
    """SimPO, arXiv:2405.14734 eq. 6.

    -log sigmoid(r_w - r_l - gamma),   r = beta log pi / |y|
    Knobs: beta in tokens/nat; gamma, the margin r_w - r_l has to beat, absolute (some code takes gamma / beta).
    At pi = pi_ref: not fixed, there is no reference; log(1 + e^gamma) where both mean log-probs are equal.
    Needs: pairs.
    Differs: from ln_dpo by having no reference, so nothing but the learning rate keeps the policy near its start."""
    check_shapes(w, l)
    r_w, r_l = beta * w.logp / w.length, beta * l.logp / l.length
    return Out(-F.logsigmoid(r_w - r_l - gamma), r_w.detach(), r_l.detach())


def d_simpo(w, l, *, beta, gamma):
    dz = -torch.sigmoid(gamma - beta * (w.logp / w.length - l.logp / l.length))
    return Grad(beta * dz / w.length, -beta * dz / l.length)


def cpo(w, l, *, beta=0.1, alpha=1.0):
    """CPO, arXiv:2401.08417; the likelihood term is a token mean, as in common code, where the paper has a sum.

    -log sigmoid(r_w - r_l),   r = beta log pi,   plus nll = -alpha log pi(w), averaged over tokens
    Knobs: beta in 1/nat; alpha, the weight of the likelihood term, a plain number.
    At pi = pi_ref: not fixed, there is no reference; log 2 + alpha nll per token where both sums are equal.
    Needs: pairs.
    Differs: dpo with a uniform reference, plus sft to hold the chosen responses up. Sums, so length counts."""
    check_shapes(w, l)
    r_w, r_l = beta * w.logp, beta * l.logp
    return Out(-F.logsigmoid(r_w - r_l), r_w.detach(), r_l.detach(), nll=-alpha * w.logp)


def d_cpo(w, l, *, beta, alpha):
    dz = -torch.sigmoid(-beta * (w.logp - l.logp))
    return Grad(beta * dz, -beta * dz, nll_w=-alpha)


def mean_logp(s: Seq) -> Tensor:
    """log p of the geometric-mean token probability p, (B,) nats, held one float step below 0, as p = 1 has no odds;
    where it is held, the gradient through the odds is 0."""
    return (s.logp / s.length).clamp(max=-torch.finfo(s.logp.dtype).eps)


def log_odds(s: Seq) -> Tensor:
    """log(p / (1 - p)), (B,) nats. expm1 keeps 1 - p exact near p = 1; for tiny p it rounds to 1, an error below one
    float step, so no second branch is needed."""
    x = mean_logp(s)
    return x - torch.log(-torch.expm1(x))


def orpo(w, l, *, lam=3.0):
    """ORPO, arXiv:2403.07691 eq. 6 and 7.

    -log pi(w) / |w| - lam log sigmoid(r_w - r_l),   r = log odds(p) = log(p / (1 - p)),   log p = log pi / |y|
    Knobs: lam, the weight of the odds-ratio term, a plain number (there is no beta: the odds set their own scale);
        0.1 to 1 in most code, for training a base model; 3 here, where SFT has left the likelihood little to teach.
    At pi = pi_ref: not fixed, there is no reference; nll per token + lam log 2 where both mean log-probs are equal.
    Needs: pairs.
    Differs: from cpo by length-normalising both terms; the likelihood is a mean per response, so part of the loss."""
    check_shapes(w, l)
    r_w, r_l = log_odds(w), log_odds(l)
    return Out(-w.logp / w.length - lam * F.logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())


def d_orpo(w, l, *, lam):
    x, y = mean_logp(w), mean_logp(l)
    dz = -lam * torch.sigmoid(log_odds(l) - log_odds(w))
    dx = dz / -torch.expm1(x) * (w.logp / w.length <= x)  # d log_odds / d log p = 1 / (1 - p), 0 where it is held
    dy = -dz / -torch.expm1(y) * (l.logp / l.length <= y)
    return Grad((dx - 1) / w.length, dy / l.length)


def r_dpo(w, l, *, beta=0.1, alpha=0.01):
    """R-DPO, arXiv:2403.19159: length-regularised DPO.

    -log sigmoid(r_w - r_l + alpha (|w| - |l|)),   r = beta D
    Knobs: beta in 1/nat; alpha in 1/token, the price of a token in the reward the policy should maximise.
    At pi = pi_ref: log(1 + e^(-alpha (|w| - |l|))), log 2 where the lengths are equal. Needs: pairs, reference.
    Differs: dpo with a margin per pair: a win that length alone explains is learned less. simpo divides instead."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    margin = alpha * (w.length - l.length).to(r_w.dtype)  # alpha times an integer tensor would be float32
    return Out(-F.logsigmoid(r_w - r_l + margin), r_w.detach(), r_l.detach())


def d_r_dpo(w, l, *, beta, alpha):
    dz = -torch.sigmoid(-beta * (w.log_ratio - l.log_ratio) - alpha * (w.length - l.length).to(w.logp.dtype))
    return Grad(beta * dz, -beta * dz)


def hinge(w, l, *, beta=0.1):
    """Hinge, the reference-normalised SLiC loss of arXiv:2309.06657 (SLiC-HF itself has no reference).

    max(0, 1 - (r_w - r_l)),   r = beta D
    Knobs: beta in 1/nat; the margin D_w - D_l stops being pushed at 1 / beta nats.
    At pi = pi_ref: 1. Needs: pairs, reference.
    Differs: from dpo by pushing every pair equally hard until its margin is reached, and then not at all."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    return Out(F.relu(1 - (r_w - r_l)), r_w.detach(), r_l.detach())


def d_hinge(w, l, *, beta):
    dz = -(beta * (w.log_ratio - l.log_ratio) < 1).to(w.logp.dtype)
    return Grad(beta * dz, -beta * dz)


def dpop(w, l, *, beta=0.1, lam=5.0):
    """DPO-Positive, arXiv:2402.13228.

    -log sigmoid(r_w - r_l - beta lam max(0, -D_w)),   r = beta D
    Knobs: beta in 1/nat; lam, nats of margin charged per nat the chosen response has lost (50 is common elsewhere).
    At pi = pi_ref: log 2. Needs: pairs, reference.
    Differs: dpo that may not win by lowering both log-probs: a chosen response below its reference costs lam times."""
    check_shapes(w, l)
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    return Out(-F.logsigmoid(r_w - r_l - beta * lam * F.relu(-w.log_ratio)), r_w.detach(), r_l.detach())


def d_dpop(w, l, *, beta, lam):
    dz = -torch.sigmoid(-beta * (w.log_ratio - l.log_ratio - lam * F.relu(-w.log_ratio)))
    return Grad(beta * dz * (1 + lam * (w.log_ratio < 0)), -beta * dz)


def kto(w, l, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """KTO, arXiv:2402.01306. w (n_w,) desirable and l (n_l,) undesirable are unrelated; either may be empty.

    desirable_weight (1 - sigmoid(r - z0)) for w, undesirable_weight (1 - sigmoid(z0 - r)) for l,   r = beta D,
    z0 = beta max(0, mean D(kl)), a constant: kl holds responses paired with somebody else's prompt
    Knobs: beta in 1/nat; the weights are plain numbers: keep desirable_weight n_w / undesirable_weight n_l in [1, 4/3].
    At pi = pi_ref: half the example's weight.
    Needs: reference; labels good or bad instead of pairs; mismatched responses for z0 (ValueError if there are none).
    Differs: loss is per EXAMPLE, first w then l, (n_w + n_l,); sigmoid, not its log: hopeless examples are let go."""
    for s in (w, l, kl):
        check_shapes(s)
    if len(kl.logp) == 0:
        raise ValueError("kto needs at least one mismatched response in kl to estimate z0")
    r_w, r_l = beta * w.log_ratio, beta * l.log_ratio
    z0 = beta * kl.log_ratio.mean().clamp(min=0).detach()
    loss_w = desirable_weight * (1 - torch.sigmoid(r_w - z0))
    loss_l = undesirable_weight * (1 - torch.sigmoid(z0 - r_l))
    return Out(torch.cat([loss_w, loss_l]), r_w.detach(), r_l.detach())


def d_kto(w, l, kl, *, beta, desirable_weight, undesirable_weight):
    z0 = kl.log_ratio.mean().clamp(min=0)
    slope_w = torch.sigmoid(beta * (w.log_ratio - z0)) * torch.sigmoid(-beta * (w.log_ratio - z0))
    slope_l = torch.sigmoid(beta * (l.log_ratio - z0)) * torch.sigmoid(-beta * (l.log_ratio - z0))
    return Grad(-desirable_weight * beta * slope_w, undesirable_weight * beta * slope_l)


class Loss(NamedTuple):
    """One line of the registry."""
    fn: Callable[..., Out]
    grad: Callable[..., Grad]
    reference: bool  # reads ref_logp
    pairs: bool  # w[i] and l[i] answer the same prompt
    tried: str = ""  # knob values searched in arXiv:2407.15229 and what it found there

    @property
    def inputs(self) -> tuple[str, ...]:
        """The Seqs to pass, in order: some of w, l, kl."""
        return tuple(p.name for p in inspect.signature(self.fn).parameters.values() if p.kind != p.KEYWORD_ONLY)


LOSSES = {
    "sft": Loss(sft, d_sft, reference=False, pairs=False),
    "dpo": Loss(dpo, d_dpo, True, True, "beta 0.01 0.05 0.1 0.3 0.5; 0.05 is the best balance"),
    "robust_dpo": Loss(robust_dpo, d_robust_dpo, reference=True, pairs=True),
    "ipo": Loss(ipo, d_ipo, reference=True, pairs=True),
    "ln_dpo": Loss(ln_dpo, d_ln_dpo, True, True, "beta 1.0 1.5 2.0 2.5 3.0 3.5; 1 to 2 is best"),
    "simpo": Loss(simpo, d_simpo, False, True, "beta 1.0 1.5 2.0 2.5, gamma 0.5 to 1.6; 1.0 or 1.5 and 1.2 best"),
    "cpo": Loss(cpo, d_cpo, reference=False, pairs=True),
    "orpo": Loss(orpo, d_orpo, reference=False, pairs=True),
    "r_dpo": Loss(r_dpo, d_r_dpo, reference=True, pairs=True),
    "hinge": Loss(hinge, d_hinge, reference=True, pairs=True),
    "dpop": Loss(dpop, d_dpop, reference=True, pairs=True),
    "kto": Loss(kto, d_kto, reference=True, pairs=False),
}


def knobs(name: str) -> dict:
    """The knobs of a loss and their defaults, read off its signature. UserError for an unknown loss."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    parameters = inspect.signature(LOSSES[name].fn).parameters.values()
    return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}


def check_knobs(name: str, given: dict) -> dict:
    """A loss's defaults overridden by `given`. UserError for an unknown knob or a value out of range."""
    known = knobs(name)
    for knob, value in given.items():
        if knob not in known:
            raise UserError(f"{name} has no knob {knob!r}; it has: {', '.join(known) or 'none'}")
        if isinstance(known[knob], bool):
            ok, want = isinstance(value, bool), "True or False"
        elif not isinstance(value, (int, float)):
            ok, want = False, "a number"
        elif knob in ("beta", "tau"):
            ok, want = 0 < value < math.inf, "a finite number above 0"
        elif knob in ("label_smoothing", "flip_rate"):
            ok, want = 0 <= value < 0.5, "in [0, 0.5)"
        else:
            ok, want = 0 <= value < math.inf, "a finite number, at least 0"
        if not ok:
            raise UserError(f"{name}: {knob} must be {want}, got {value!r}")
    return {**known, **given}


def grad_of(name: str, w: Seq, l: Seq | None = None, kl: Seq | None = None, **given) -> Grad:
    """The hand-derived gradient of a loss, with the loss's own defaults for the knobs not given."""
    seqs = {"w": w, "l": l, "kl": kl}
    return LOSSES[name].grad(*(seqs[i] for i in LOSSES[name].inputs), **check_knobs(name, given))


def help_text(name: str) -> str:
    """The knobs of a loss with defaults, units (from its docstring) and the values tried in the literature."""
    defaults = ", ".join(f"{knob}={value}" for knob, value in knobs(name).items())
    units = (LOSSES[name].fn.__doc__ or "").partition("Knobs: ")[2].partition("At pi = pi_ref:")[0]
    tried = f" In arXiv:2407.15229: {LOSSES[name].tried}." if LOSSES[name].tried else ""
    wrapped = textwrap.fill(" ".join(units.split()) + tried, 110, initial_indent="    ", subsequent_indent="    ")
    return f"{name}: {defaults or 'no knobs'}\n" + (f"{wrapped}\n" if defaults else "")


def table() -> str:
    """One row per loss, computed by the code above, then the knobs."""
    w, l = (Seq(torch.tensor([-2.0 * n]), torch.tensor([-2.0 * n]), torch.tensor([n])) for n in (3, 4))
    lines = ["Policy = reference; chosen: 3 tokens, log pi = -6 nats; rejected: 4 tokens, log pi = -8 nats. d chosen",
             "and d nll are by log pi(chosen). nll is a sum over tokens; training divides by their number.\n",
             f"{'':11}reference  pairs     loss  d chosen  d rejected   nll     d nll"]
    for name, entry in LOSSES.items():
        seqs = {"w": w, "l": l, "kl": l}
        out, grad = entry.fn(*(seqs[i] for i in entry.inputs)), grad_of(name, **seqs)
        d_l = f"{grad.l[0]:.4f}" if len(grad.l) else "-"
        nll = "-" if out.nll is None else f"{out.nll[0]:.1f}"
        lines.append(f"{name:11}{'yes' if entry.reference else 'no':>9}{'yes' if entry.pairs else 'no':>7}"
                     f"{out.loss[0]:9.4f}{grad.w[0]:10.4f}{d_l:>12}{nll:>6}{grad.nll_w:10.1f}")
    return "\n".join(lines + ["", *map(help_text, LOSSES)])


if __name__ == "__main__":
    print(table())
