"""A run in words: what moved, whether that is normal, and what to try. A function per topic, each a list of sentences,
empty where there is nothing to say."""
import math

from nanopref.judge.measures_rm import interval
from nanopref.judge.stats import difference, mean

FEW = 30  # pairs: on fewer, a judge that is right in 90 % may well be right on all (0.9^29 = 5 %)


def read_run(metrics, measures, config, best_accuracy) -> list[str]:
    """A policy's run in a few sentences."""
    lines = _read_logps(metrics, config) + _read_noise(metrics, best_accuracy)
    for split, by in measures.items():
        before, after = by["start"], by["policy"]
        for topic in (_read_score, _read_refusals, _read_harm, _read_answer_length, _read_endings, _read_ranking):
            lines += topic(split, before, after)
    return lines


def _last_tenth(metrics, key) -> float:
    """The mean over the last tenth of training; 0 where the metric is missing."""
    values = [m[key] for m in metrics[-max(1, len(metrics) // 10):] if key in m]
    return mean(values) if values else 0.0


def _read_logps(metrics, config) -> list[str]:
    if not all(key in metrics[-1] for key in ("logps_change/chosen", "logps_change/rejected")):
        return []
    chosen, rejected = (_last_tenth(metrics, f"logps_change/{side}") for side in ("chosen", "rejected"))
    moved = f"chosen {chosen:+.1f} and rejected {rejected:+.1f} nats per response over the last tenth of training"
    if chosen < 0 and rejected < chosen:
        return [f"Both log-probs fell, the rejected one further: {moved}. That is normal: a loss of the "
                "margin is content with any gap, and lowering is easier than raising. If the chosen fall "
                "matters to you, try --loss dpop or --loss cpo, which hold the chosen side up."]
    if chosen >= 0 > rejected:
        return [f"The log-probs parted both ways: {moved}."]
    if rejected > chosen + 0.5:
        return [f"The wrong way round: {moved}. The policy learnt to prefer what was rejected: is a sign "
                "reversed in the loss, or are chosen and rejected swapped in the data?"]
    if rejected >= chosen:
        return [f"The rejected log-prob did not fall below the chosen one's change: {moved}. Nothing was "
                "learnt from the pairs: more epochs, or a higher --lr up to 2e-4?"]
    return [f"Both log-probs rose, the chosen one further: {moved}; the likelihood term of {config.loss} does that."]


def _read_noise(metrics, best_accuracy) -> list[str]:
    trained = _last_tenth(metrics, "rewards/accuracies")
    if not best_accuracy or trained <= max(best_accuracy.values()) + 0.03:
        return []
    return [f"Training pairs are ranked right {trained:.0%} of the time, more than any judge could on labels "
            "this noisy: the noise is being learnt by heart. Fewer epochs, or more pairs."]


def _read_score(split, before, after) -> list[str]:
    if "score" not in after:
        return []
    gain, error = difference(after["score"], before["score"])
    verdict = "better" if gain > 2 * error else "worse" if gain < -2 * error else "no different beyond the noise"
    return [f"On {split} the policy is {verdict}: gold score {before['score'][0]:.2f} -> {after['score'][0]:.2f} "
            f"({gain:+.2f} ± {error:.2f}), win rate against its start {after['win_vs_sft'][0]:.0%}."]


def _read_refusals(split, before, after) -> list[str]:
    was, now = (measures.get("over_refusal", [0])[0] for measures in (before, after))
    if now <= was + 0.05:
        return []
    return [f"On {split} it refuses more harmless requests than before ({was:.0%} -> {now:.0%}): refusing is the "
            "cheapest way to please. A lower --lr, or data in which refusing the harmless is punished, helps."]


def _read_harm(split, before, after) -> list[str]:
    was, now = (measures.get("harmful", [0])[0] for measures in (before, after))
    if now <= was + 0.1:
        return []
    return [f"On {split} it no longer refuses {now:.0%} of the risky requests (before: {was:.0%}): the lesson not to "
            "refuse the harmless has spilled over. A lower --lr, or a loss with a reference, helps."]


def _read_answer_length(split, before, after) -> list[str]:
    was, now = before["length"][0], after["length"][0]
    change, error = difference(after["length"], before["length"])
    if 0.8 < now / was < 1.25 or abs(change) <= 2 * error:
        return []
    return [f"On {split} answers got {'longer' if now > was else 'shorter'}: {was:.0f} -> {now:.0f} tokens."]


def _read_endings(split, before, after) -> list[str]:
    was, now = before["finished"][0], after["finished"][0]
    if now >= was - 0.05:
        return []
    return [f"On {split} fewer answers end by themselves ({was:.0%} -> {now:.0%}): the policy is coming apart; lower "
            "--lr."]


def _read_ranking(split, before, after) -> list[str]:
    if "score" in after or "accuracy" not in after:
        return []
    share, error = after["accuracy"]
    return [f"On {split} nothing here can say whether the answers are better: there is no judge for this data. What is "
            f"known: {share:.0%} ± {error:.0%} of held-out pairs are ranked right by the implicit reward (chance: "
            "50%)."]


def read_rm(metrics, measures, trivial, best_accuracy, is_balanced) -> list[str]:
    """A reward model's run in a few sentences. `is_balanced`: the training pairs were drawn again, so that
    best_accuracy says nothing about them."""
    lines = _read_training(metrics, measures, {} if is_balanced else best_accuracy)
    for split, by in measures.items():
        after = by["after"]
        lines += _read_accuracy(split, after, trivial[split])
        lines += _read_expected(split, after, best_accuracy)
        lines += _read_confidence(split, after) + _read_length(split, after)
    return lines


def _read_training(metrics, measures, best_accuracy) -> list[str]:
    if noise := _read_noise(metrics, best_accuracy):
        return noise
    trained = _last_tenth(metrics, "rewards/accuracies")
    highest = interval(next(iter(measures.values()))["after"])[1]  # of the split that is most like training
    if trained <= highest + 0.05:
        return []
    return [f"Training pairs are ranked right {trained:.0%} of the time, new ones clearly less often: they are being "
            "learnt by heart. Fewer epochs, or more pairs."]


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
    if interval(after)[0] <= 0.5 or "expected_accuracy" not in after:
        return []
    (value, error), best = after["expected_accuracy"], best_accuracy[split]
    return [f"On {split} a fresh label would agree with its choice {value:.1%} ± {error:.1%} of the time; "
            f"the gold reward itself reaches {best:.1%}, as the labels are noisy. Of what lies between a "
            f"coin and that, {(value - 0.5) / (best - 0.5):.0%} is learnt."]


def _read_confidence(split, after) -> list[str]:
    if after["n_pairs"][0] < FEW:
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
