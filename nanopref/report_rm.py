"""The end of a reward model's run: its measures before and after training, beside judges that have learnt nothing; its
calibration, extremes and worst mistakes; one figure; and the run read to its user."""
import json
import math
from pathlib import Path

from .config import RunConfig
from .evaluate_rm import baselines, calibration, interval, measure
from .report import finish, table

RM_ROWS = (("accuracy", "pair accuracy", "{:.2f}"), ("expected_accuracy", "expected accuracy", "{:.2f}"),
           ("reward_mean", "reward mean", "{:.2f}"), ("reward_std", "reward std", "{:.2f}"),
           ("margin", "margin", "{:.2f}"), ("nll", "loss (nats)", "{:.2f}"),
           ("calibration_error", "calibration error", "{:.2f}"), ("overconfidence", "overconfidence", "{:.2f}"),
           ("corr_gold", "corr. with gold", "{:.2f}"), ("corr_length", "corr. with length", "{:.2f}"),
           ("length_beyond_gold", "length beyond gold", "{:.2f}"))
NAMES = {"before": "untrained head", "after": "trained"}
NOTE = "± is one standard error over the test pairs; a tie is wrong."
TIES = ("A tie of the reward model is wrong, one of a trivial judge counts 1/2: they tie often and could toss a coin.")
FEW = 30  # pairs: on fewer, a judge that is right in 90 % may well be right on all (0.9^29 = 5 %)
GOLD_NOTE = (" Expected accuracy: against fresh labels, without the\nnoise of these. Correlation with gold and length "
             "beyond gold (0 is none): inside pairs, as a reward has no origin.")


def report_rm(config: RunConfig, folder: Path, scored: dict, splits) -> None:
    """Judge a reward model by its scores, {split: {"before" | "after": pairs as in nanopref/evaluate_rm.py}}, and write
    scores.jsonl, figure.png and report.json into `folder`; report.json last, as its presence marks a run as done."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measures = {split: {who: measure(pairs) for who, pairs in by.items()} for split, by in scored.items()}
    after = {split: by["after"] for split, by in scored.items()}
    trivial = {split: baselines([(p["chosen"], p["rejected"]) for p in pairs]) for split, pairs in after.items()}
    best, first = splits.best_accuracy, next(iter(scored))
    is_balanced = config.knobs["balance_length"]  # then other pairs are trained on than those whose noise is known
    reading = read_rm(metrics, measures, trivial, best, is_balanced)
    parts = [table(measures, NAMES, best, NOTE + GOLD_NOTE * splits.gold, rows=RM_ROWS),
             accuracies(measures, trivial, best), calibration_table(after), extremes(after[first], first),
             mistakes(after[first], first),
             "What happened\n" + "\n".join(f"- {line}" for line in reading)]
    print("\n" + "\n\n".join(parts) + "\n")
    with (folder / "scores.jsonl").open("w") as file:
        for split, by in scored.items():
            for who, pairs in by.items():
                for pair in pairs:
                    file.write(json.dumps({"split": split, "who": who, **pair}, ensure_ascii=False) + "\n")
    from .plots_rm import reward_figure  # matplotlib takes a second to import
    reward_figure(metrics, scored, best, config, folder / "figure.png")
    print(f"scores: {folder / 'scores.jsonl'}\nreport: {folder / 'report.json'}\nmodel:  {folder / 'model'}")
    finish(folder, {"config": {"loss": "rm", "knobs": config.knobs, "data": config.data, "seed": config.seed},
                    "last_step": metrics[-1], "measures": measures, "best_accuracy": best, "baselines": trivial,
                    "calibration": {split: calibration(pairs) for split, pairs in after.items()}, "reading": reading})


def accuracies(measures, trivial, best_accuracy) -> str:
    """Pair accuracy with its interval beside what must be beaten and what cannot be, splits beside each other."""
    cell = lambda share, low, high: f"{share:.1%} ({low:.1%} to {high:.1%})"
    rows = {"": [f"{split}, {by['after']['n_pairs'][0]} pairs" for split, by in measures.items()]}
    for who, name in (("after", "reward model, trained"), ("before", "untrained head")):
        rows[name] = [cell(by[who]["accuracy"][0], *interval(by[who])) for by in measures.values()]
    for name in next(iter(trivial.values())):
        rows[name] = [cell(*trivial[split][name]) for split in measures]
    if best_accuracy:
        rows["best possible"] = [f"{best_accuracy[split]:.1%}" for split in measures]
    lines = ["Pairs ranked right (95 % interval); chance is 50 %, and a judge below it is as good reversed"]
    lines += [f"{name:24}" + "".join(f"{text:>28}" for text in cells) for name, cells in rows.items()]
    return "\n".join([*lines, TIES])


def calibration_table(scored) -> str:
    """What the model says against what is seen, {split: pairs}: three lines per split, a column per bin."""
    lines = ["How sure the model is of its choice, and how often the label makes the same choice"]
    for split, pairs in scored.items():
        said, seen, n = zip(*calibration(pairs))
        lines += [f"{split:16}said    " + "".join(f"{x:6.0%}" for x in said),
                  f"{'':16}seen    " + "".join(f"{x:6.0%}" for x in seen),
                  f"{'':16}pairs   " + "".join(f"{x:6}" for x in n)]
    return "\n".join(lines)


def extremes(pairs, split, n=3) -> str:
    """The n highest- and n lowest-scored answers, each once."""
    found = {(pair["prompt"], pair[side]): (pair[f"reward_{side}"], pair, side)
             for pair in pairs for side in ("chosen", "rejected")}
    ranked = sorted(found.values(), key=lambda one: -one[0])
    n = min(n, len(ranked) // 2)
    lines = []
    for name, part in (("Highest", ranked[:n]), ("Lowest", ranked[len(ranked) - n:][::-1])):
        lines.append(f"{name} rewards on {split}")
        for _, pair, side in part:
            lines += _shown(pair, side)
    return "\n".join(lines)


def mistakes(pairs, split, n=5) -> str:
    """The n pairs whose rejected response is scored above the chosen one by most, and what gold says of the label."""
    wrong = sorted((pair for pair in pairs if pair["reward_rejected"] > pair["reward_chosen"]),
                   key=lambda pair: pair["reward_chosen"] - pair["reward_rejected"])
    if not wrong:
        return f"No pair of {split} is ranked the wrong way round."
    noise = [pair for pair in wrong if "gold_chosen" in pair and pair["gold_rejected"] > pair["gold_chosen"]]
    lines = [f"Worst of {len(wrong)} mistakes on {split}"
             + (f" (in {len(noise)} of them gold contradicts the label)" if "gold_chosen" in pairs[0] else "")]
    for pair in wrong[:n]:
        lines += _shown(pair, "chosen", "rejected")
        if "gold_chosen" in pair and pair["gold_rejected"] >= pair["gold_chosen"]:
            lines.append("  the label is noise: gold says otherwise" if pair["gold_rejected"] > pair["gold_chosen"]
                         else "  the label is a coin's: gold does not prefer either")
    return "\n".join(lines)


def _shown(pair, *sides) -> list[str]:
    """The prompt and the answers of these sides, a line each; of a long prompt the end, which says what is asked."""
    prompt = " ".join(pair["prompt"].split())
    lines = ["> " + (prompt if len(prompt) <= 200 else "…" + prompt[-199:])]
    for side in sides:
        text = " ".join(pair[side].split())
        gold = f" [gold {pair[f'gold_{side}']:+.1f}]" if f"gold_{side}" in pair else ""
        lines.append(f"  {side:8} {pair[f'reward_{side}']:+.2f}{gold} {text if len(text) <= 300 else text[:299] + '…'}")
    return lines


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
