"""A run in words: what moved, whether that is normal, and what to try. A function per topic, each a list of sentences,
empty where there is nothing to say. What is said lies beyond two standard errors, and is large enough to matter.
"""
import math

from nanopref.judge.measures_rm import interval
from nanopref.judge.stats import mean, mean_se
from nanopref.judge.tables import plus_minus
from nanopref.losses import LOSSES

FEW = 30  # pairs: on fewer, a judge that is right in 90 % may well be right on all (0.9^29 = 5 %)
FEW_SUBJECTS = 5  # where prompts are about fewer things, an error estimated from them says nothing itself


def read_run(metrics, measures, config, best_accuracy) -> list[str]:
    """A policy's run in a few sentences."""
    lines = _read_logps(metrics, config) + _read_noise(metrics, config, best_accuracy)
    for split, by in measures.items():
        for topic in (_read_score, _read_refusals, _read_harm, _read_answer_length, _read_endings, _read_ranking):
            lines += topic(split, by)
        if LOSSES[config.loss].reference:
            lines += _read_direction(split, by["policy"])
    return lines


def _last_tenth(metrics, key) -> list[float]:
    """The values over the last tenth of training."""
    return [m[key] for m in metrics[-max(1, len(metrics) // 10):] if key in m]


def _beyond(by, name, least, sign=1) -> bool:
    """Whether the policy has gained (sign 1) or lost (-1) more than `least` in a measure, and more than two standard
    errors, on prompts about enough things."""
    if name not in by.get("gain", {}) or by["policy"].get("n", {}).get(name, FEW_SUBJECTS) < FEW_SUBJECTS:
        return False
    gain, error = by["gain"][name]
    return error is not None and sign * gain > max(least, 2 * error)


def _read_logps(metrics, config) -> list[str]:
    chosen, rejected = (_last_tenth(metrics, f"logps_change/{side}") for side in ("chosen", "rejected"))
    if not chosen or len(chosen) != len(rejected):
        return []
    gap, error = mean_se([w - l for w, l in zip(chosen, rejected)])  # a value per step
    w, l = mean(chosen), mean(rejected)
    moved = f"chosen {w:+.1f} and rejected {l:+.1f} nats per response over the last tenth of training"
    if error is None or abs(gap) <= max(3 * error, 0.2):
        return [f"The two log-probs moved alike: {moved}. Little was learnt from the pairs: more epochs, or a higher "
                "--lr up to 2e-4?"]
    if gap < 0:
        return [f"The wrong way round: {moved}. The policy learnt to prefer what was rejected: is a sign "
                "reversed in the loss, or are chosen and rejected swapped in the data?"]
    if w < 0:
        return [f"Both log-probs fell, the rejected one further: {moved}. That is normal: a loss of the "
                "margin is content with any gap, and lowering is easier than raising. If the chosen fall "
                "matters to you, try --loss dpop or --loss cpo, which hold the chosen side up."]
    if l < 0:
        return [f"The log-probs parted both ways: {moved}."]
    why = f"; the likelihood term of {config.loss} does that" if "nll_loss" in metrics[-1] else ""
    return [f"Both log-probs rose, the chosen one further: {moved}{why}."]


def _read_noise(metrics, config, best_accuracy) -> list[str]:
    """In its first epoch every pair is ranked before it is trained on: then nothing can be learnt by heart."""
    steps = _last_tenth(metrics, "rewards/accuracies")
    if not best_accuracy or not steps or config.epochs < 2:
        return []
    trained, best = mean(steps), max(best_accuracy.values())
    if trained - 2 * _error(trained, len(steps) * config.batch_size) <= best + 0.03:
        return []
    return [f"Training pairs are ranked right {trained:.0%} of the time, more than any judge could on labels "
            "this noisy: the noise is being learnt by heart. Fewer epochs, or more pairs."]


def _error(share, n) -> float:
    """Standard error of a share of n pairs."""
    return math.sqrt(share * (1 - share) / n)


def _read_score(split, by) -> list[str]:
    if "score" not in by["policy"]:
        return []
    before, after, gain = by["start"]["score"][0], by["policy"]["score"][0], by["gain"]["score"]
    moved = f"gold score {before:.2f} -> {after:.2f}"
    if gain[1] is None:
        return [f"On {split} {moved}; from prompts about a single thing nothing more can be told."]
    verdict = ("better" if gain[0] > 2 * gain[1] else "worse" if gain[0] < -2 * gain[1]
               else "no different beyond the noise")
    return [f"On {split} the policy is {verdict}: {moved} ({plus_minus(gain, sign='+')}), win rate against its start "
            f"{by['policy']['win_vs_sft'][0]:.0%}."]


def _from_to(by, name) -> tuple[str, str]:
    return tuple(f"{by[who][name][0]:.0%}" for who in ("start", "policy"))


def _read_refusals(split, by) -> list[str]:
    if not _beyond(by, "over_refusal", 0.05):
        return []
    was, now = _from_to(by, "over_refusal")
    return [f"On {split} it refuses more harmless requests than before ({was} -> {now}): refusing is the "
            "cheapest way to please. A lower --lr, or data in which refusing the harmless is punished, helps."]


def _read_harm(split, by) -> list[str]:
    if not _beyond(by, "harmful", 0.1):
        return []
    was, now = _from_to(by, "harmful")
    return [f"On {split} it no longer refuses {now} of the risky requests (before: {was}): the lesson not to "
            "refuse the harmless has spilled over. A lower --lr, or a loss with a reference, helps."]


def _read_answer_length(split, by) -> list[str]:
    was, now = by["start"]["length"][0], by["policy"]["length"][0]
    if 0.8 < now / was < 1.25 or not (_beyond(by, "length", 0) or _beyond(by, "length", 0, -1)):
        return []
    return [f"On {split} answers got {'longer' if now > was else 'shorter'}: {was:.0f} -> {now:.0f} tokens."]


def _read_endings(split, by) -> list[str]:
    if not _beyond(by, "finished", 0.05, -1):
        return []
    was, now = _from_to(by, "finished")
    return [f"On {split} fewer answers end by themselves ({was} -> {now}): the policy is coming apart; lower --lr."]


def _read_ranking(split, by) -> list[str]:
    if "score" in by["policy"] or "accuracy" not in by["policy"]:
        return []
    share, error = by["policy"]["accuracy"]
    within = "" if error is None else f" ± {error:.0%}"
    return [f"On {split} nothing here can say whether the answers are better: there is no judge for this data. What is "
            f"known: {share:.0%}{within} of held-out pairs are ranked right by the implicit reward (chance: "
            "50%)."]


def _read_direction(split, after) -> list[str]:
    share, error = after.get("accuracy", (1.0, None))
    if error is None or share + 2 * error >= 0.5:
        return []
    return [f"On {split} held-out pairs are ranked the wrong way round, {share:.0%} ± {error:.0%} of them right where "
            "a coin has 50%: is a sign reversed in the loss, or are chosen and rejected swapped in the data?"]


def read_rm(metrics, measures, trivial, best_accuracy, config) -> list[str]:
    """A reward model's run in a few sentences."""
    lines = _read_training(metrics, measures, config, best_accuracy)
    for split, by in measures.items():
        after = by["after"]
        lines += _read_accuracy(split, after, trivial[split])
        lines += _read_expected(split, after, best_accuracy)
        lines += _read_confidence(split, after) + _read_length(split, after)
    return lines


def _read_training(metrics, measures, config, best_accuracy) -> list[str]:
    """Of pairs that were drawn again to balance lengths, best_accuracy says nothing."""
    if noise := _read_noise(metrics, config, {} if config.knobs["balance_length"] else best_accuracy):
        return noise
    steps, highest = _last_tenth(metrics, "rewards/accuracies"), interval(next(iter(measures.values()))["after"])[1]
    if config.epochs < 2 or mean(steps) - 2 * _error(mean(steps), len(steps) * config.batch_size) <= highest + 0.05:
        return []
    return [f"Training pairs are ranked right {mean(steps):.0%} of the time, new ones clearly less often: they are "
            "being learnt by heart. Fewer epochs, or more pairs."]


def _read_accuracy(split, after, trivial) -> list[str]:
    """Against a coin and against the best of the trivial judges, {name: [accuracy, low, high]}, or its reverse."""
    low, high = interval(after)
    name, beaten = max(((f"\"{name}\"" if x[0] >= 0.5 else f"the reverse of \"{name}\"", max(x[0], 1 - x[0]))
                        for name, x in trivial.items()), key=lambda judge: judge[1])
    seen = f"{after['accuracy'][0]:.1%} of {after['n_pairs'][0]} pairs, 95 % interval {low:.1%} to {high:.1%}"
    if high < 0.5:
        return [f"On {split} it ranks pairs the wrong way round ({seen}): are chosen and rejected swapped in the data?"]
    if low <= 0.5:
        return [f"On {split} nothing shows that was learnt: {seen}, which includes the 50 % of a coin. More "
                "pairs or epochs, or a higher --lr; with few test pairs, more of those (--test-data)."]
    if low <= beaten:
        return [f"On {split} it beats a coin, but not clearly the trivial judge {name} ({beaten:.1%}): {seen}."]
    return [f"On {split} it beats a coin and every trivial judge (the best: {name}, {beaten:.1%}): {seen}."]


def _read_expected(split, after, best_accuracy) -> list[str]:
    if interval(after)[0] <= 0.5 or "expected_accuracy" not in after or after["expected_accuracy"][1] is None:
        return []
    (value, error), best = after["expected_accuracy"], best_accuracy[split]
    return [f"On {split} a fresh label would agree with its choice {value:.1%} ± {error:.1%} of the time; "
            f"the gold reward itself reaches {best:.1%}, as the labels are noisy. Of what lies between a "
            f"coin and that, {(value - 0.5) / (best - 0.5):.0%} is learnt."]


def _read_confidence(split, after) -> list[str]:
    if after["n_pairs"][0] < FEW or after["nll"][1] is None:
        return []
    (surplus, error), (nll, nll_error) = after["overconfidence"], after["nll"]
    if nll > math.log(2) + max(2 * nll_error, 0.03):
        return [f"On {split} its probabilities are worse than none: a loss of {nll:.2f} nats, where always saying "
                "50 % costs 0.69. It is far too sure of itself. Fewer epochs, or a lower --lr."]
    if surplus > max(2 * error, 0.03):
        return [f"On {split} it is overconfident: {surplus:.1%} ± {error:.1%} surer of its choices than they are "
                "right. Their order may be fine, the scale of its rewards is too large: fewer epochs."]
    if -surplus > max(2 * error, 0.03):
        return [f"On {split} it is underconfident: right {-surplus:.1%} ± {error:.1%} more often than it says. It has "
                "not finished learning: more epochs, or a higher --lr."]
    return [f"On {split} its confidence is as it should be, within the noise ({surplus:+.1%} ± {error:.1%})."]


def _read_length(split, after) -> list[str]:
    if after.get("corr_length", [0, 0])[1] is None:
        return []
    if "length_beyond_gold" in after:
        b, error = after["length_beyond_gold"]
        begin = f"On {split} its reward has a correlation of {after['corr_gold'][0]:+.2f} with gold inside pairs, and"
        if abs(b) > max(2 * error, 0.05):
            return [f"{begin} it pays for {'length' if b > 0 else 'brevity'} beyond what gold pays (b = {b:+.2f} ± "
                    f"{error:.2f}): whoever optimises against it will find that."
                    + " See python -m nanopref.findings.options." * (b > 0)]
        return [f"{begin} it does not follow length beyond gold (b = {b:+.2f} ± {error:.2f})."]
    if "corr_length" in after:
        r, error = after["corr_length"]
        return [f"On {split} reward and length have a correlation of {r:+.2f} ± {error:.2f}. Whether that is a bias, "
                "nothing here can say: longer answers may be better ones."]
    return []
