"""Which reward model serves annotators who disagree? (course report, section 2.3, question 4)

    python -m nanopref.findings.pluralism                          # 3 seeds, six models each: half an hour on two cores
    python -m nanopref.findings.pluralism --seeds 1 --rows 300     # a quick look; --rows counts per group

Three groups of annotators (GROUPS of nanopref/world/) label 3,000 pairs each by their own true reward. Tested on
1,000 other pairs of each group:

    averaged     one model, on all 9,000 labels as if one person had given them
    own          a model per group, each on the 3,000 labels of its group
    another's    for contrast: the models of the other two groups, mean of their accuracies
    ensemble     mean of the three groups' models, each with its scores on the test standardised
    conditioned  one model on all 9,000, with a system message that names the group: "The reader is curious."
    heads        one trunk on all 9,000, a head per group on its 3,000 (train_rm.py --heads)

All kinds learn from the same 9,000 labels; `own` from a third of them per model. The numbers are expected accuracies:
the mean, over a group's test pairs, of the probability that its label agrees with the model's choice. They have no
label noise; the column "on labels" is the plain accuracy on the labels drawn. A tie counts 1/2.
"""
import statistics
from itertools import combinations
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref.data.examples import encode
from nanopref.data.files import read
from nanopref.findings.common import N_TEST, sft_models, standardised, write_rows
from nanopref.findings.seeds import options, over_seeds, train_all
from nanopref.judge.measures_rm import expected_accuracy
from nanopref.judge.stats import mean, outcomes
from nanopref.judge.tables import aligned
from nanopref.logps import score
from nanopref.reward import rewards
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import exit_on_user_error
from nanopref.world import labels

N_TRAIN = 3000  # pairs per group
KINDS = ("averaged", "own", "another's", "ensemble", "conditioned", "heads")
BEST = "best possible"


def write_data(folder: Path, seed: int) -> dict:
    """{name: (training file, test file)}: of every group, of all "mixed", and of all "told" who reads. Groups take
    turns in the mixed files, so that their first 3 N rows are the first N of each."""
    files = {}
    for split, n, draw, end in ("train", N_TRAIN, seed, f"-seed{seed}"), ("test_id", N_TEST, 1, ""):
        rows = {group: labels.pairs(split, n, draw, group) for group in labels.GROUPS}
        rows["mixed"] = [row for turn in zip(*rows.values()) for row in turn]
        rows["told"] = [{"system": f"The reader is {row['group']}.", **row} for row in rows["mixed"]]
        for name, drawn in rows.items():
            path = folder / f"{split.partition('_')[0]}-{name}{end}.jsonl"
            files[name] = (*files.get(name, ()), write_rows(path, drawn))
    return files


def runs_of(files: dict, sft: Path, seed: int, out: str, rows: int | None) -> dict:
    """{name of a model: its train_rm.py run}: every group's own, "mixed", "told" and "heads"."""
    def run(name, *more):
        n = ["--rows", rows if name in labels.GROUPS else rows * len(labels.GROUPS)] if rows else []
        return "train_rm.py", ["--data", files[name][0], "--test-data", files[name][1], "--model", sft, "--lr", "3e-4",
                               "--batch-size", 32, "--seed", seed, "--out", out, *n, *more]

    return {**{name: run(name) for name in files}, "heads": run("mixed", "--heads")}


def scored(folder: Path, test_file: Path) -> dict:
    """{group: [(reward of chosen, of rejected), ...]} by the model in `folder`, which is told each pair's group only by
    its prompt, or by the head that it has for it."""
    model, tokenizer = load_model(folder)
    pairs, _ = encode(tokenizer, read(test_file).rows, ("w", "l"), 512, groups=model.groups)
    scores = score(model, pairs, rewards)
    return {group: [tuple(s) for pair, s in zip(pairs, scores) if pair.row.group == group] for group in labels.GROUPS}


def accuracies(scores: list, truth: list) -> tuple[float, float]:
    """(expected accuracy, accuracy on the labels) of scores (chosen, rejected) per pair; `truth`: the group's own
    rewards of the same two."""
    names = ("reward_chosen", "reward_rejected", "gold_chosen", "gold_rejected")
    pairs = [dict(zip(names, (*scored, *true))) for scored, true in zip(scores, truth)]
    return expected_accuracy(pairs)[0], mean(outcomes(*zip(*scores)))


def measure(scores: dict, truth: dict) -> dict:
    """{kind: {group: (expected accuracy, on the labels)}} of a seed; `scores`: {a model's name: what `scored` gave}."""
    result = {kind: {} for kind in (*KINDS, BEST)}
    for group, true in truth.items():
        members = torch.tensor([scores[member][group] for member in truth], dtype=torch.float64)  # (members, pairs, 2)
        ensemble = standardised(members, origin=(-2, -1)).mean(0).tolist()
        by_kind = {"averaged": scores["mixed"][group], "own": scores[group][group], "ensemble": ensemble,
                   "conditioned": scores["told"][group], "heads": scores["heads"][group], BEST: true}
        for kind, pairs in by_kind.items():
            result[kind][group] = accuracies(pairs, true)
        others = [accuracies(scores[other][group], true) for other in truth if other != group]
        result["another's"][group] = tuple(map(statistics.mean, zip(*others)))
    return result


def mean_of(kind: str, seeds: list, i: int = 0) -> list[float]:
    """Mean over the groups, one per seed; i = 0: expected, 1: on the labels."""
    return [statistics.mean(cell[i] for cell in seed[kind].values()) for seed in seeds]


def worst_served(kind: str, seeds: list) -> tuple[float, str]:
    """What the group loses that stays furthest below its best possible expected accuracy, mean over seeds; its name."""
    return max((statistics.mean(seed[BEST][group][0] - seed[kind][group][0] for seed in seeds), group)
               for group in seeds[0][kind])


def table(seeds: list) -> str:
    """Mean ± standard deviation over the seeds, and what it says in words."""
    rows = [["", *labels.GROUPS, "mean", "on labels", "  worst served"]]
    for kind in (*KINDS, BEST):
        by_group = [[seed[kind][group][0] for seed in seeds] for group in labels.GROUPS]
        columns = [*by_group, mean_of(kind, seeds, 0), mean_of(kind, seeds, 1)]
        lost, group = worst_served(kind, seeds)
        rows.append([kind, *(over_seeds(values, 3) for values in columns),
                     f"  {group} {-lost:+.3f}" if kind != BEST else ""])
    lines = [aligned(rows, "<13", *[">15"] * (len(labels.GROUPS) + 2), "<")]
    first, second = sorted(KINDS, key=lambda kind: -statistics.mean(mean_of(kind, seeds)))[:2]
    lead = over_seeds([a - b for a, b in zip(mean_of(first, seeds), mean_of(second, seeds))], 3)
    fairest = min(KINDS, key=lambda kind: worst_served(kind, seeds))
    lines += ["", f"Best on average: {first}, ahead of {second} by {lead}. Best for its worst-served group: {fairest}."]
    lost, group = worst_served("averaged", seeds)
    return "\n".join([*lines, f"Averaging all labels costs most for the {group}: {lost:.3f} below its best possible."])


def figure(seeds: list, out: str) -> None:
    """A panel per group: expected accuracy of every kind, and the best possible."""
    from nanopref.judge.plots import POLICY, START, plt, save
    fig, axes = plt.subplots(1, len(labels.GROUPS), figsize=(11.5, 3.4), sharex=True, sharey=True, layout="constrained")
    for ax, group in zip(axes, labels.GROUPS):
        for y, kind in enumerate(KINDS):
            values, color = [s[kind][group][0] for s in seeds], START if kind == "another's" else POLICY
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            ax.errorbar(statistics.mean(values), y, xerr=spread, fmt="o", color=color, capsize=3)
        best = seeds[0][BEST][group][0]  # the test pairs are the same for every seed
        averaged = statistics.mean(s["averaged"][group][0] for s in seeds)
        ax.axvline(best, color="black", ls="--", lw=1)
        ax.set_title(f"{group}: one model for all gives\n{averaged:.2f} of at most {best:.2f} (dashed)", fontsize=10)
        ax.set_xlabel("expected accuracy on the group's pairs")
        ax.grid(axis="x", color="0.92")
    axes[0].set_yticks(range(len(KINDS)), KINDS)
    axes[0].set_ylim(len(KINDS) - 0.5, -0.5)
    fig.suptitle("Three groups of annotators, five ways to judge for them (grey: another group's model); "
                 f"mean ± sd over {len(seeds)} seeds", fontsize=11)
    save(fig, Path(out) / "findings" / "pluralism.png")


def main(argv=None) -> None:
    """Train what is missing, measure, and show."""
    args = options(__doc__).parse_args(argv)
    seeds, sft = range(args.seeds), sft_models(args)
    files = {s: write_data(Path(args.out) / "findings" / "data", s) for s in seeds}
    runs = {(s, name): run for s in seeds
            for name, run in runs_of(files[s], sft[s], s, args.out, args.rows).items()}
    folders = dict(zip(runs, train_all(runs.values(), args.jobs)))
    scores = {(s, name): scored(folder / "model", files[s]["told" if name == "told" else "mixed"][1])
              for (s, name), folder in tqdm(folders.items(), "scoring")}
    tests = read(files[0]["mixed"][1]).rows
    truth = {group: [row.scores for row in tests if row.group == group] for group in labels.GROUPS}
    by_seed = [measure({name: by_group for (seed, name), by_group in scores.items() if seed == s}, truth)
               for s in seeds]
    pairs = labels.pairs("test_id", N_TEST, 1)
    print(f"Share of {N_TEST:,} pairs of test_id on which two groups prefer different responses: " + ", ".join(
        f"{a} and {b} {labels.disagreement(pairs, a, b):.2f}" for a, b in combinations(labels.GROUPS, 2)))
    print(f"Expected accuracy, mean ± standard deviation over {args.seeds} seeds:\n\n{table(by_seed)}")
    figure(by_seed, args.out)


if __name__ == "__main__":
    exit_on_user_error(main)
