"""A run in words: what moved, whether that is normal, and what to try."""
import math

from nanopref.judge.reward_models import interval


def read_run(metrics, measures, config, best_accuracy) -> list[str]:
    """The run in a few sentences: what moved, whether that is normal, and what to try."""
    last = metrics[-max(1, len(metrics) // 10):]
    mean = lambda key: sum(m[key] for m in last if key in m) / max(1, sum(key in m for m in last))
    lines = []
    if all(key in last[-1] for key in ("logps_change/chosen", "logps_change/rejected")):
        chosen, rejected = mean("logps_change/chosen"), mean("logps_change/rejected")
        moved = f"chosen {chosen:+.1f} and rejected {rejected:+.1f} nats per response over the last tenth of training"
        if chosen < 0 and rejected < chosen:
            lines.append(f"Both log-probs fell, the rejected one further: {moved}. That is normal: a loss of the "
                         "margin is content with any gap, and lowering is easier than raising. If the chosen fall "
                         "matters to you, try --loss dpop or --loss cpo, which hold the chosen side up.")
        elif chosen >= 0 > rejected:
            lines.append(f"The log-probs parted both ways: {moved}.")
        elif rejected > chosen + 0.5:
            lines.append(f"The wrong way round: {moved}. The policy learnt to prefer what was rejected: is a sign "
                         "reversed in the loss, or are chosen and rejected swapped in the data?")
        elif rejected >= chosen:
            lines.append(f"The rejected log-prob did not fall below the chosen one's change: {moved}. Nothing was "
                         "learnt from the pairs: more epochs, or a higher --lr up to 2e-4?")
        else:
            lines.append(f"Both log-probs rose, the chosen one further: {moved}; the likelihood term of {config.loss} "
                         "does that.")
    if best_accuracy and mean("rewards/accuracies") > max(best_accuracy.values()) + 0.03:
        lines.append(f"Training pairs are ranked right {mean('rewards/accuracies'):.0%} of the time, more than any "
                     "judge could on labels this noisy: the noise is being learnt by heart. Fewer epochs, or more "
                     "pairs.")
    for split, by in measures.items():
        before, after = by["start"], by["policy"]
        if "score" in after:
            gain = after["score"][0] - before["score"][0]
            error = (after["score"][1] ** 2 + before["score"][1] ** 2) ** 0.5
            verdict = ("better" if gain > 2 * error else "worse" if gain < -2 * error
                       else "no different beyond the noise")
            lines.append(f"On {split} the policy is {verdict}: gold score {before['score'][0]:.2f} -> "
                         f"{after['score'][0]:.2f} ({gain:+.2f} ± {error:.2f}), win rate against its start "
                         f"{after['win_vs_sft'][0]:.0%}.")
        if after.get("over_refusal", [0])[0] > before.get("over_refusal", [0])[0] + 0.05:
            lines.append(f"On {split} it refuses more harmless requests than before "
                         f"({before['over_refusal'][0]:.0%} -> {after['over_refusal'][0]:.0%}): refusing is the "
                         "cheapest way to please. A lower --lr, or data in which refusing the harmless is punished, "
                         "helps.")
        if after.get("harmful", [0])[0] > before.get("harmful", [0])[0] + 0.1:
            lines.append(f"On {split} it no longer refuses {after['harmful'][0]:.0%} of the risky requests (before: "
                         f"{before['harmful'][0]:.0%}): the lesson not to refuse the harmless has spilled over. A "
                         "lower --lr, or a loss with a reference, helps.")
        ratio = after["length"][0] / before["length"][0]
        noise = 2 * (after["length"][1] ** 2 + before["length"][1] ** 2) ** 0.5
        if not 0.8 < ratio < 1.25 and abs(after["length"][0] - before["length"][0]) > noise:
            lines.append(f"On {split} answers got {'longer' if ratio > 1 else 'shorter'}: {before['length'][0]:.0f} -> "
                         f"{after['length'][0]:.0f} tokens.")
        if after["finished"][0] < before["finished"][0] - 0.05:
            lines.append(f"On {split} fewer answers end by themselves ({before['finished'][0]:.0%} -> "
                         f"{after['finished'][0]:.0%}): the policy is coming apart; lower --lr.")
        if "score" not in after:
            lines.append(f"On {split} nothing here can say whether the answers are better: there is no judge for this "
                         f"data. What is known: {after['accuracy'][0]:.0%} ± {after['accuracy'][1]:.0%} of held-out "
                         "pairs are ranked right by the implicit reward (chance: 50%)." if "accuracy" in after else "")
    return [line for line in lines if line]
FEW = 30  # pairs: on fewer, a judge that is right in 90 % may well be right on all (0.9^29 = 5 %)


def read_rm(metrics, measures, trivial, best_accuracy, is_balanced) -> list[str]:
    """The run in a few sentences: what was learnt, whether that is normal, and what to try. `is_balanced`: the training
    pairs were drawn again, so that best_accuracy says nothing about them."""
    last = metrics[-max(1, len(metrics) // 10):]
    trained = sum(m["rewards/accuracies"] for m in last) / len(last)
    lines = []
    highest = interval(next(iter(measures.values()))["after"])[1]  # of the split that is most like training
    if best_accuracy and not is_balanced and trained > max(best_accuracy.values()) + 0.03:
        lines.append(f"Training pairs are ranked right {trained:.0%} of the time, more than any judge could on labels "
                     "this noisy: the noise is being learnt by heart. Fewer epochs, or more pairs.")
    elif trained > highest + 0.05:
        lines.append(f"Training pairs are ranked right {trained:.0%} of the time, new ones clearly less often: they "
                     "are being learnt by heart. Fewer epochs, or more pairs.")
    for split, by in measures.items():
        after, (low, high) = by["after"], interval(by["after"])
        share, n = after["accuracy"][0], after["n_pairs"][0]
        name, beaten = max(((f"\"{name}\"" if x[0] >= 0.5 else f"the reverse of \"{name}\"", max(x[0], 1 - x[0]))
                            for name, x in trivial[split].items()), key=lambda judge: judge[1])
        seen = f"{share:.1%} of {n} pairs, 95 % interval {low:.1%} to {high:.1%}"
        if high < 0.5:
            lines.append(f"On {split} it ranks pairs the wrong way round ({seen}): are chosen and rejected swapped in "
                         "the data?")
        elif low <= 0.5:
            lines.append(f"On {split} nothing shows that was learnt: {seen}, which includes the 50 % of a coin. More "
                         "pairs or epochs, or a higher --lr; with few test pairs, more of those (--test-data).")
        elif low <= beaten:
            lines.append(f"On {split} it beats a coin, but not clearly the trivial judge {name} ({beaten:.1%}): "
                         f"{seen}.")
        else:
            lines.append(f"On {split} it beats a coin and every trivial judge (the best: {name}, {beaten:.1%}): "
                         f"{seen}.")
        if low > 0.5 and "expected_accuracy" in after:
            value, error = after["expected_accuracy"]
            best = best_accuracy[split]
            lines.append(f"On {split} a fresh label would agree with its choice {value:.1%} ± {error:.1%} of the time; "
                         f"the gold reward itself reaches {best:.1%}, as the labels are noisy. Of what lies between a "
                         f"coin and that, {(value - 0.5) / (best - 0.5):.0%} is learnt.")
        lines += _read_confidence(split, after) + _read_length(split, after)
    return lines


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
