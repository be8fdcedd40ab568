"""Break it on purpose: one-line bugs in nanopref/losses.py, most of them found in published code, and for every equation
of the documents a misprint, the document's own where it has one.

`python tests/mutants.py` prints the bugs. As an exercise: read the loss, old and new, predict what a training run would
show, then compare with the symptom. test_mutants.py applies each bug and each misprint and demands that the checks of
test_losses.py, or the equation's own test in test_equations.py, notice.
"""
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parent.parent / "nanopref" / "losses.py"


class Mutant(NamedTuple):
    name: str
    loss: str
    old: str  # must occur exactly once inside `def loss`
    new: str
    symptom: str


MUTANTS = [
    # The seven classic bugs of DPO implementations.
    Mutant("sign", "dpo", "z = r_w - r_l", "z = r_l - r_w",
           "The loss falls as it should while rewards/accuracies falls to 0: the policy learns to like the rejected."),
    Mutant("mean for sum", "dpo", "beta * w.log_ratio, beta * l.log_ratio",
           "beta * w.log_ratio / w.length, beta * l.log_ratio / l.length",
           "This is ln_dpo with a beta ~30 times too small: the loss hardly leaves 0.693, though accuracies may rise."),
    Mutant("no reference", "dpo", "beta * w.log_ratio, beta * l.log_ratio", "beta * w.logp, beta * l.logp",
           "Step 0 is not log 2, rewards start at beta log pi instead of 0, and short responses win from the start."),
    Mutant("beta outside the sigmoid", "dpo",
           "z = r_w - r_l\n    loss = -(1 - label_smoothing)",
           "z = (r_w - r_l) / beta\n    loss = -beta * (1 - label_smoothing)",
           "Step 0 is beta log 2. Gradients start the same but fade at a few nats: beta is a mere step size."),
    Mutant("beta twice", "dpo", "z = r_w - r_l", "z = beta * (r_w - r_l)",
           "Step 0 is log 2, so it looks healthy; gradients are beta times too small and the loss creeps."),
    Mutant("rejected side detached", "dpo", "beta * l.log_ratio", "beta * l.log_ratio.detach()",
           "Values are right, learning is not: chosen log-probs rise, rejected ones just drift, as in a weighted sft."),
    Mutant("reward without beta", "dpo", "r_w.detach(), r_l.detach()", "w.log_ratio.detach(), l.log_ratio.detach()",
           "Training is right; logged rewards and margins are 1 / beta = 10 times too large. Accuracies hide it."),
    # Two more, not visible at the default knobs or at moderate values.
    Mutant("smoothing with the wrong sign", "dpo", "- label_smoothing * F.logsigmoid(-z)",
           "+ label_smoothing * F.logsigmoid(-z)",
           "With label_smoothing > 0 the loss goes below 0 and margins grow without end instead of stopping."),
    Mutant("log of sigmoid", "dpo", "-(1 - label_smoothing) * F.logsigmoid(z)",
           "-(1 - label_smoothing) * torch.sigmoid(z).log()",
           "Fine for hundreds of steps, then one badly ranked pair (z below about -100) makes the loss inf."),

    Mutant("sign", "sft", "nll=-w.logp", "nll=w.logp", "The loss falls below 0 and the text turns to noise at once."),
    Mutant("mean per response", "sft", "nll=-w.logp", "nll=-w.logp / w.length",
           "A loss ~30 times too small, and a token of a short response weighs more than one of a long response."),
    Mutant("not normalised", "robust_dpo", " / (1 - 2 * flip_rate)", "",
           "Step 0 is (1 - 2 eps) log 2; the direction is right, so only a lower effective learning rate shows."),
    Mutant("smoothing instead", "robust_dpo", "+ flip_rate * F.logsigmoid(-z)", "- flip_rate * F.logsigmoid(-z)",
           "Step 0 is log 2 / (1 - 2 eps); margins stop growing at log((1 - eps) / eps): this is conservative dpo."),
    Mutant("target doubled", "ipo", "1 / (2 * tau)", "1 / tau",
           "Step 0 is four times too high; margins settle at twice the target."),
    Mutant("one length for both", "ipo", "d_l / l.length", "d_l / w.length",
           "Step 0 is right. Pairs with a long rejected response get a huge margin: length is taught."),
    Mutant("one length for both", "ln_dpo", "l.log_ratio / l.length", "l.log_ratio / w.length",
           "Step 0 is log 2, equal lengths are right; elsewhere the longer rejected response is pushed too hard."),
    Mutant("reference forgotten", "ln_dpo", "beta * w.log_ratio / w.length, beta * l.log_ratio / l.length",
           "beta * w.logp / w.length, beta * l.logp / l.length",
           "Step 0 is not log 2: this is simpo without a margin."),
    Mutant("margin added", "simpo", "r_w - r_l - gamma", "r_w - r_l + gamma",
           "The loss starts low and learning is weak: pairs count as won while the chosen response is still behind."),
    Mutant("gamma taken for a ratio", "simpo", "r_w - r_l - gamma", "r_w - r_l - beta * gamma",
           "Invisible at beta = 1; otherwise the margin scales with beta and published settings do not carry over."),
    Mutant("summed", "simpo", "beta * w.logp / w.length, beta * l.logp / l.length", "beta * w.logp, beta * l.logp",
           "Rewards in the tens, most pairs saturated from step 0, responses get shorter and shorter."),
    Mutant("likelihood of the rejected", "cpo", "nll=-alpha * w.logp", "nll=-alpha * l.logp",
           "nll falls nicely, of the wrong responses: chosen and rejected log-probs rise together, margins do not."),
    Mutant("alpha forgotten", "cpo", "nll=-alpha * w.logp", "nll=-w.logp", "Invisible at the default alpha of 1."),
    Mutant("averaged", "cpo", "beta * w.logp, beta * l.logp", "beta * w.logp / w.length, beta * l.logp / l.length",
           "The preference term hardly leaves log 2: with beta = 0.1 only sft is left."),
    Mutant("ratio for odds ratio", "orpo", "log_odds(w), log_odds(l)", "mean_logp(w), mean_logp(l)",
           "Trains much the same while p is small; the two part as p nears 1, where odds stretch and log p flattens."),
    Mutant("sigmoid of the odds ratio", "orpo", "F.logsigmoid(r_w - r_l)", "F.logsigmoid((r_w - r_l).exp())",
           "The odds-ratio term cannot exceed log 2: a pair ranked badly wrong gets hardly any gradient."),
    Mutant("pole at p = 1", "orpo", "r_w, r_l = log_odds(w), log_odds(l)",
           "r_w, r_l = (x - torch.log(-torch.expm1(x)) for x in (w.logp / w.length, l.logp / l.length))",
           "Right until one response is memorised (p rounds to 1), then the gradient is NaN and so is the model."),
    Mutant("length bonus", "r_dpo", "alpha * (w.length - l.length)", "alpha * (l.length - w.length)",
           "Rewards and accuracies look right; responses get longer than with plain dpo, faster with larger alpha."),
    Mutant("margin of 1 nat", "hinge", "1 - (r_w - r_l)", "beta - (r_w - r_l)",
           "Step 0 is beta, not 1; pairs stop at a margin of 1 nat instead of 1 / beta and training ends early."),
    Mutant("squared", "hinge", "F.relu(1 - (r_w - r_l))", "F.relu(1 - (r_w - r_l)) ** 2",
           "Step 0 is still 1; gradients are twice as large there and fade towards the margin instead of staying put."),
    Mutant("penalty on the wrong side", "dpop", "F.relu(-w.log_ratio)", "F.relu(w.log_ratio)",
           "The chosen response is held DOWN: its log-prob falls further than under plain dpo."),
    Mutant("lam outside beta", "dpop", "- beta * lam *", "- lam *",
           "Same at step 0; then a penalty 1 / beta = 10 times too strong, near to an sft that ignores the rejected."),
    Mutant("z0 not detached", "kto", "clamp(min=0).detach()", "clamp(min=0)",
           "Values are right; the mismatched responses are trained too, upwards or downwards by the mix of labels."),
    Mutant("z0 not clamped", "kto", ".mean().clamp(min=0)", ".mean()",
           "Same while the kl estimate is positive; once it is negative, good examples count as won too early."),
    Mutant("z0 without beta", "kto", "z0 = beta * kl", "z0 = kl",
           "Right at step 0, where z0 = 0; later z0 is 10 times too large and every bad example counts as solved."),
    Mutant("undesirable sign", "kto", "torch.sigmoid(z0 - r_l)", "torch.sigmoid(r_l - z0)",
           "Bad responses are trained as good ones: an sft on everything. Step 0 and the desirable half look right."),
    Mutant("reward without beta", "kto", "r_w.detach(), r_l.detach()", "w.log_ratio.detach(), l.log_ratio.detach()",
           "Training is right; logged rewards are 1 / beta times too large, next to a kl that is not."),
]


class Misprint(NamedTuple):
    equation: int
    function: str  # relative to nanopref
    old: str       # must occur exactly once in its code
    new: str


MISPRINTS = [Misprint(*line) for line in (
    (1, "losses.reduce", "out.nll.sum() / n_tokens", "out.nll.sum() / len(out.loss)"),
    (2, "model.attend", "attn_mask, is_causal=is_causal", "None, is_causal=True"),
    (3, "losses.sft", "nll=-w.logp", "nll=-w.logp / w.length"),
    (4, "world.exact.policy_gradient", '"xy,xyp->xp", behaviour.exp()', '"xy,xyp->xp", 1 + 0 * behaviour'),
    (5, "world.exact.policy_gradient", "(logp - behaviour)", "(behaviour - logp)"),
    (6, "world.exact.preference", "reward[:, :, None] - reward[:, None, :]", "reward[:, None, :] - reward[:, :, None]"),
    (7, "reward.bradley_terry", "chosen - rejected - margin", "rejected - chosen - margin"),
    (7, "reward.d_bradley_terry", "return c - s, c + s", "return c - s, c - s"),
    (8, "reward.ranking", ".mean(1)", ".sum(1)"),
    (8, "reward.d_ranking", "grad / len(better)", "grad"),
    (9, "rl.sequence_reward", "reward - beta", "reward + beta"),
    (9, "world.exact.objective", "beta * kl", "kl"),
    (10, "rl.gae", "gamma * lam * next_advantage", "lam * next_advantage"),
    (10, "rl.clipped_surrogate", "torch.minimum", "torch.maximum"),
    (10, "rl.d_clipped_surrogate", "ratio < 1 - epsilon", "ratio > 1 + epsilon"),
    (11, "rl.ppo_ptx", "pretrain_logp.mean()", "pretrain_logp.sum()"),
    (12, "world.exact.kl", "expect(p, p - q)", "expect(q, p - q)"),
    (12, "rl.kl_estimates", "torch.expm1(-log_ratio) + log_ratio", "torch.expm1(log_ratio) - log_ratio"),
    (13, "world.exact.objective", "world.reward)", "-world.reward)"),
    (13, "world.exact.optimum", "world.reward / beta", "world.reward * beta"),
    (14, "world.exact.optimum", "- log_z(world, beta)[:, None]", ""),
    (15, "losses.dpo", "z = r_w - r_l", "z = r_w + r_l"),
    (15, "losses.d_dpo", "-beta * dz", "beta * dz"),
    (16, "world.exact.log_z", "world.reward / beta", "world.reward"),
    (17, "losses.d_dpo", "-beta * dz", "beta * dz"),
    (17, "losses.dpo", "beta * w.log_ratio, beta * l.log_ratio", "beta * w.logp, beta * l.logp"),
    (18, "losses.d_dpo", "w.log_ratio - l.log_ratio", "w.logp - l.logp"),  # 000 (5)
    (19, "run.metrics.step_metrics", '"rewards/chosen"] - means', '"rewards/chosen"] + means'),
    (20, "losses.ln_dpo", "l.log_ratio / l.length", "l.log_ratio"),
    (21, "losses.kto", "undesirable_weight * (1 - torch.sigmoid(z0 - r_l))",  # as in document 000
     "undesirable_weight * torch.sigmoid(z0 - r_l)"),
    (21, "losses.kto", "clamp(min=0).detach()", "clamp(min=0)"),
    (21, "losses.d_kto", "-desirable_weight * beta", "desirable_weight * beta"),
    (22, "losses.d_cpo", "nll_w=-alpha", "nll_w=alpha"),
    (22, "losses.cpo", "beta * w.logp, beta * l.logp", "beta * w.logp / w.length, beta * l.logp / l.length"),
    (23, "losses.simpo", "- gamma", "+ gamma"),
    (24, "losses.d_ln_dpo", "-beta * dz / l.length", "-beta * dz / w.length"),
    (25, "losses.ln_dpo", "beta * w.log_ratio / w.length", "w.log_ratio / w.length"),
    (26, "losses.mean_logp", "s.logp / s.length", "s.logp"),
    (26, "losses.orpo", "F.logsigmoid(r_w - r_l)", "F.logsigmoid((r_w - r_l).exp())"),  # 001, before its second "="
    (27, "losses.d_orpo", "dz = -lam", "dz = lam"),  # 001 (24) to (28)
    (27, "losses.d_orpo", "-torch.expm1(x)", "torch.exp(x)"),
    (28, "losses.log_odds", "x - torch.log", "x + torch.log"),
    (29, "losses.orpo", "lam * F.logsigmoid", "F.logsigmoid"),
    (30, "reward.length_normalised", "alpha + length", "alpha * length"),
    (30, "reward.length_penalised", ".abs()", ""),
    (31, "logps.sequence_logps", "batch.response, logps)", "batch.response, logps) / 2"),
    (32, "run.metrics.step_metrics", "w - l > TIE", "w - l >= 0"),
    (33, "judge.stats.outcomes", "0.5 if a == b", "0.0 if a == b"),
    (34, "losses.ipo", "1 / (2 * tau)", "1 / tau"),
)]


def replace_once(code, old, new, name) -> str:
    """`code` without docstrings, as a formula in a docstring is no match; ValueError unless `old` is in it once."""
    if code.count(old) != 1:
        raise ValueError(f"{name}: {old!r} occurs {code.count(old)} times, not once")
    return code.replace(old, new)


def misprint(mutant: Misprint):
    """(the function, the same with the misprint in it)."""
    name, function = mutant.function.rsplit(".", 1)
    module = importlib.import_module(f"nanopref.{name}")
    text = inspect.getsource(getattr(module, function))
    start = text.rindex('"""') + 3 if '"""' in text else 0
    namespace = dict(vars(module))
    exec(text[:start] + replace_once(text[start:], mutant.old, mutant.new, mutant.function), namespace)
    return getattr(module, function), namespace[function]


def apply(mutant: Mutant) -> types.ModuleType:
    """losses.py with the bug in it, as a module. ValueError unless `old` occurs exactly once inside the function."""
    text = SOURCE.read_text()
    start, end = re.search(rf"^def {mutant.loss}\(.*?(?=^def )", text, re.M | re.S).span()
    docstring_end = text.index('"""', text.index('"""', start) + 3) + 3
    body = replace_once(text[docstring_end:end], mutant.old, mutant.new, f"{mutant.loss}/{mutant.name}")
    module = types.ModuleType("mutant")
    exec(text[:docstring_end] + body + text[end:], module.__dict__)
    return module


if __name__ == "__main__":
    for m in MUTANTS:
        old, new = (code.replace("\n   ", ";") for code in (m.old, m.new))
        print(f"{m.loss}: {m.name}\n    old  {old}\n    new  {new}\n    see  {m.symptom}\n")
