"""The end of a reward model's run: its measures before and after training, beside judges that have learnt nothing; its
calibration, extremes and worst mistakes; one figure; and the run read to its user."""
import json
from pathlib import Path

from nanopref.judge.in_words import read_rm
from nanopref.judge.measures_rm import baselines, calibration, clusters_of, interval, measure
from nanopref.judge.report import finish, table
from nanopref.judge.tables import aligned
from nanopref.run.config import RunConfig
from nanopref.run.disk import write_jsonl

RM_ROWS = (("accuracy", "pair accuracy", 2), ("expected_accuracy", "expected accuracy", 2),
           ("reward_mean", "reward mean", 2), ("reward_std", "reward std", 2), ("margin", "margin", 2),
           ("nll", "loss (nats)", 2), ("calibration_error", "calibration error", 2),
           ("overconfidence", "overconfidence", 2), ("corr_gold", "corr. with gold", 2),
           ("corr_length", "corr. with length", 2), ("length_beyond_gold", "length beyond gold", 2))
NAMES = {"before": "untrained head", "after": "trained"}
NOTE = "± is one standard error, clustered by what prompts are about; a tie is wrong."
TIES = ("A tie of the reward model is wrong, one of a trivial judge counts 1/2: they tie often and could toss a coin.")
GOLD_NOTE = (" Expected accuracy: against fresh labels, without the\nnoise of these. Correlation with gold and length "
             "beyond gold (0 is none): inside pairs, as a reward has no origin.")


def report_rm(config: RunConfig, folder: Path, scored: dict, splits) -> None:
    """Judge a reward model by its scores, {split: {"before" | "after": pairs as in nanopref/judge/measures_rm.py}},
    and write scores.jsonl, figure.png and report.json into `folder`; report.json last, as its presence marks a run as
    done."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measures = {split: {who: measure(pairs) for who, pairs in by.items()} for split, by in scored.items()}
    after = {split: by["after"] for split, by in scored.items()}
    trivial = {split: baselines([(p["chosen"], p["rejected"]) for p in pairs], clusters_of(pairs))
               for split, pairs in after.items()}
    best, first = splits.best_accuracy, next(iter(scored))
    reading = read_rm(metrics, measures, trivial, best, config)
    parts = [table(measures, NAMES, best, NOTE + GOLD_NOTE * splits.gold, rows=RM_ROWS),
             accuracies(measures, trivial, best), calibration_table(after), extremes(after[first], first),
             mistakes(after[first], first),
             "What happened\n" + "\n".join(f"- {line}" for line in reading)]
    print("\n" + "\n\n".join(parts) + "\n")
    write_jsonl(folder / "scores.jsonl", [{"split": split, "who": who, **pair} for split, by in scored.items()
                                          for who, pairs in by.items() for pair in pairs])
    from nanopref.judge.plots_rm import reward_figure  # matplotlib takes a second to import
    reward_figure(metrics, scored, best, config, folder / "figure.png")
    print(f"scores: {folder / 'scores.jsonl'}\nreport: {folder / 'report.json'}\nmodel:  {folder / 'model'}")
    finish(folder, {"config": {"loss": "rm", "knobs": config.knobs, "data": config.data, "seed": config.seed},
                    "last_step": metrics[-1], "measures": measures, "best_accuracy": best, "baselines": trivial,
                    "calibration": {split: calibration(pairs) for split, pairs in after.items()}, "reading": reading},
           config)


def accuracies(measures, trivial, best_accuracy) -> str:
    """Pair accuracy with its interval beside what must be beaten and what cannot be, splits beside each other."""
    cell = lambda share, low, high: f"{share:.1%} ({low:.1%} to {high:.1%})"
    rows = [["", *(f"{split}, {by['after']['n_pairs'][0]} pairs" for split, by in measures.items())]]
    for who, name in (("after", "reward model, trained"), ("before", "untrained head")):
        rows.append([name, *(cell(by[who]["accuracy"][0], *interval(by[who])) for by in measures.values())])
    for name in next(iter(trivial.values())):
        rows.append([name, *(cell(*trivial[split][name]) for split in measures)])
    if best_accuracy:
        rows.append(["best possible", *(f"{best_accuracy[split]:.1%}" for split in measures)])
    return "\n".join(["Pairs ranked right (95 % interval); chance is 50 %, and a judge below it is as good reversed",
                      aligned(rows, "<24", ">28"), TIES])


def calibration_table(scored) -> str:
    """What the model says against what is seen, {split: pairs}: three lines per split, a column per bin."""
    rows = []
    for split, pairs in scored.items():
        said, seen, n = zip(*calibration(pairs))
        rows += [[split, "said", *(f"{x:.0%}" for x in said)], ["", "seen", *(f"{x:.0%}" for x in seen)],
                 ["", "pairs", *n]]
    return ("How sure the model is of its choice, and how often the label makes the same choice\n"
            + aligned(rows, "<16", "<8", ">6"))


def extremes(pairs, split, n=3) -> str:
    """The n highest- and n lowest-scored answers, each once."""
    answers = {(pair["prompt"], pair[side]): (pair[f"reward_{side}"], pair, side)
               for pair in pairs for side in ("chosen", "rejected")}
    ranked = sorted(answers.values(), key=lambda answer: -answer[0])
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


