"""Judging a reward model: every number of its report, from plain lists and without a model.

`scored` is a list of test pairs: {"prompt", "chosen", "rejected" (texts), "reward_chosen", "reward_rejected",
"length_chosen", "length_rejected" (tokens) and, where there is one, "gold_chosen", "gold_rejected" (gold rewards)}.

A reward has no origin: adding a number to all rewards of one prompt changes no preference. So what compares rewards
with gold rewards compares them inside pairs.
"""
import re

import torch
import torch.nn.functional as F

from nanopref.errors import UserError
from nanopref.judge import measures
from nanopref.judge.stats import mean_se, share, share_interval
from nanopref.logps import score
from nanopref.reward import rewards
from nanopref.world import labels
from nanopref.world.gold import gold_reward

BINS = 5  # of equal width, from 50 % to 100 %

# Words that mark a refusal; an answer is asked how many of them it has.
REFUSAL = re.compile(r"\b(?:cannot|can[’']?t|won[’']?t|will not|sorry|apologi[sz]e|unable|not able|not comfortable|"
                     r"refuse|illegal|against the law)\b", re.IGNORECASE)
# Judges that have learnt nothing, by what they score an answer with.
TRIVIAL = {"longer wins": lambda text: len(text.split()),
           "shorter wins": lambda text: -len(text.split()),
           "fewer words of refusal": lambda text: -len(REFUSAL.findall(text))}


def measure(scored) -> dict:
    """The measures of one reward model on one test set, {name: [value, standard error, or 0 where none is known]}:

    n_pairs             how many pairs there are
    n_clusters          about how many subjects, or of how many prompts: errors are clustered by that (see stats.py)
    accuracy            share whose chosen response has the higher reward; a tie is wrong (as in the course report)
    reward_mean         over all responses, chosen and rejected
    reward_std          of the same
    margin              mean of chosen minus rejected
    nll                 mean of -log sigmoid(margin), nats: the loss on these pairs, log 2 for one who knows nothing
    calibration_error   see there
    overconfidence      mean of confidence, sigmoid(|margin|), minus the share ranked right (a tie counts 1/2)
    corr_length         Pearson correlation of reward and length over all responses

    and where gold is known

    expected_accuracy   see there
    corr_gold           of reward and gold reward inside pairs: Pearson's, after each pair's own mean is taken off both
    length_beyond_gold  b of the least squares score ~ a gold + b length, all three as differences chosen - rejected
                        divided by their root mean square; 0 for the gold reward itself

    A correlation of fewer than three pairs, or with a constant, is undefined and left out. UserError for a reward that
    is no finite number."""
    reward, length = _sides(scored, "reward"), _sides(scored, "length")
    if not reward.isfinite().all():
        raise UserError("the reward model gives rewards that are no finite numbers: train with a lower --lr, or with "
                        "--precision fp32")
    margin, clusters = reward[:, 0] - reward[:, 1], clusters_of(scored)
    surplus = margin.abs().sigmoid() - _right(margin)
    over_pairs = lambda values: mean_se(values.tolist(), clusters)
    result = {"n_pairs": [len(scored), 0.0], "n_clusters": [len(set(clusters)), 0.0],
              "accuracy": over_pairs((margin > 0).double()), "reward_mean": [reward.mean().item(), 0.0],
              "reward_std": [reward.std().item(), 0.0], "margin": over_pairs(margin),
              "nll": over_pairs(F.softplus(-margin)), "calibration_error": [calibration_error(scored), 0.0],
              "overconfidence": over_pairs(surplus),
              "corr_length": correlation(reward - reward.mean(), length - length.mean(), clusters)}
    if "gold_chosen" in scored[0]:
        inside = [x - x.mean(1, keepdim=True) for x in (reward, _sides(scored, "gold"), length)]
        result |= {"expected_accuracy": expected_accuracy(scored, clusters),
                   "corr_gold": correlation(*inside[:2], clusters),
                   "length_beyond_gold": length_beyond_gold(*inside, clusters)}
    return {name: value for name, value in result.items() if value is not None}


def interval(measured) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy in what `measure` gave, of the effective number of pairs."""
    return share_interval(measured["accuracy"], measured["n_pairs"][0], measured["n_clusters"][0])


def clusters_of(scored) -> list:
    """What each pair is about; without gold, its prompt."""
    return measures.clusters_of([pair["prompt"] for pair in scored], "gold_chosen" in scored[0])


def calibration(scored, bins=BINS) -> list[tuple]:
    """Rows (predicted, observed, n): what the model says against what is seen, in bins of equal width; empty bins are
    left out.

    A pair is known only as (chosen, rejected), so predicted probabilities are folded: the model's confidence in its own
    choice, sigmoid(|margin|), from 1/2 to 1, is averaged over a bin, against the share of the bin's pairs in which that
    choice is the label's (a tie counts 1/2)."""
    margin = _sides(scored, "reward").diff(dim=1)[:, 0].neg()
    confidence, right = margin.abs().sigmoid(), _right(margin)
    at = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    return [(confidence[at == i].mean().item(), right[at == i].mean().item(), int((at == i).sum()))
            for i in at.unique().tolist()]


def calibration_error(scored, bins=BINS) -> float:
    """Expected calibration error (Guo et al. 2017): sum over bins of n_bin / n |predicted - observed|. By chance it is
    above 0 even where the probabilities are right: on 200 pairs some 0.05."""
    return sum(n * abs(predicted - observed) for predicted, observed, n in calibration(scored, bins)) / len(scored)


def expected_accuracy(scored, clusters=None) -> list[float]:
    """[mean, standard error] of the probability that a fresh label agrees with the model's choice, under the world's
    labelling; a tie counts 1/2. Accuracy without the noise of one draw of labels, at most labels.best_accuracy."""
    agrees = []
    for pair in scored:
        p = labels.preference_probability(pair["gold_chosen"], pair["gold_rejected"])
        margin = pair["reward_chosen"] - pair["reward_rejected"]
        agrees.append(p if margin > 0 else 1 - p if margin < 0 else 0.5)
    return mean_se(agrees, clusters)


def correlation(x, y, clusters=None):
    """[Pearson correlation, standard error] of x and y (n, 2), responses of n pairs from which a mean has been taken;
    None where undefined. The error is that of each pair's influence, as responses of a pair are not independent."""
    estimate = _correlation(x, y)
    if estimate is None:
        return None
    r, influence = estimate
    return [r, mean_se(influence.tolist(), clusters)[1]]


def length_beyond_gold(reward, gold, length, clusters=None):
    """[b, standard error] of `measure`, from (n, 2) each with the pairs' means taken off; None where undefined.

    With s, g, l divided by their root mean square the normal equations are (s g) = a + r b and (s l) = r a + b, where
    (s g), (s l) and r = (g l) are the correlations inside pairs; so b = ((s l) - r (s g)) / (1 - r^2). Its error
    follows from the influence of each pair on the three (delta method)."""
    correlations = [_correlation(x, y) for x, y in ((reward, gold), (reward, length), (gold, length))]
    if None in correlations or 1 - correlations[2][0] ** 2 < 1e-9:  # where length is gold, nothing tells them apart
        return None
    (sg, d_sg), (sl, d_sl), (r, d_r) = correlations
    a, b = (sg - r * sl) / (1 - r * r), (sl - r * sg) / (1 - r * r)
    influence = (d_sl - r * d_sg - (a - r * b) * d_r) / (1 - r * r)
    return [b, mean_se(influence.tolist(), clusters)[1]]


def baselines(rows, clusters=None) -> dict:
    """Each of TRIVIAL on (chosen, rejected) texts: {name: [accuracy, low, high]} with Wilson's 95 % interval; a tie
    counts 1/2. Length is in words. One that lies below 1/2 is as good a judge when reversed."""
    margin = lambda judge: torch.tensor([float(judge(chosen) - judge(rejected)) for chosen, rejected in rows])
    return {name: list(share(_right(margin(judge)).tolist(), clusters)) for name, judge in TRIVIAL.items()}


def _sides(scored, name):
    """(n, 2) float64: chosen, rejected."""
    return torch.tensor([[pair[f"{name}_chosen"], pair[f"{name}_rejected"]] for pair in scored], dtype=torch.float64)


def _right(margin):
    """1, 1/2 or 0 for a margin above, at or below 0."""
    return (margin.sign() + 1) / 2


def _correlation(x, y):
    """(r, influence of each pair (n,), of mean 0): with x, y divided by their root mean square, the influence of a
    point is x y - r (x^2 + y^2) / 2."""
    rms = [z.pow(2).mean().sqrt() for z in (x, y)]
    if len(x) < 3 or min(rms) < 1e-9:  # two pairs lie on one line; below this a difference is a rounding error
        return None
    x, y = x / rms[0], y / rms[1]
    r = (x * y).mean().item()
    return r, (x * y - r * (x ** 2 + y ** 2) / 2).mean(1)


def score_pairs(model, pairs, gold) -> list[dict]:
    """What this module judges, per pair: the whole prompt and the responses as texts, rewards, lengths in tokens and,
    with `gold`, the world's gold rewards. `pairs`: Examples with their rows, as examples.encode makes them."""
    scored = []
    for pair, (chosen, rejected) in zip(pairs, score(model, pairs, rewards)):
        row, turns = pair.row, [message["content"] for message in pair.row.prompt]
        one = {"prompt": "\n\n".join(turns), "chosen": row.chosen, "rejected": row.rejected, "reward_chosen": chosen,
               "reward_rejected": rejected, "length_chosen": len(pair.responses[0]),
               "length_rejected": len(pair.responses[1])}
        if gold:
            one |= {f"gold_{side}": gold_reward(turns[-1], one[side])["total"] for side in ("chosen", "rejected")}
        scored.append(one)
    return scored
