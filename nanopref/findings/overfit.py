"""What does training far too long do to the scale of the rewards, to calibration and to accuracy on other topics?

    python -m nanopref.findings.overfit               # 3 seeds, 15 reward models: about ten minutes on two CPU cores
    python -m nanopref.findings.overfit --rows 300    # a quick look

500 pairs, 1 to 16 passes over them. The course report (section 2.3, question 2) warns of both ends: a model that learns
the data set by heart, and scores that run to the extremes. Since about one label in five contradicts the gold reward, a
model that ranks more than four in five TRAINING pairs right has begun to learn noise.
"""
import json
from pathlib import Path

from nanopref.findings.common import N_TEST, SPLITS, judge, load, scored, test_pairs, train, values
from nanopref.findings.seeds import options, over_seeds
from nanopref.judge.stats import mean
from nanopref.judge.tables import aligned
from nanopref.run.cli import exit_on_user_error

PAIRS, EPOCHS = 500, (1, 2, 4, 8, 16)
COLUMNS = {"test_id": ("test_id", "expected_accuracy"), "test_ood": ("test_ood", "expected_accuracy"),
           "loss, nats": ("test_id", "nll"), "loss OOD": ("test_ood", "nll"),
           "calib. error": ("test_id", "calibration_error"), "overconfident": ("test_id", "overconfidence"),
           "reward std": ("test_id", "reward_std")}


def main(argv=None) -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    p = options(__doc__)
    p.set_defaults(rows=PAIRS)
    args = p.parse_args(argv)
    runs = train({epochs: ["--epochs", epochs] for epochs in EPOCHS}, args)
    tests, best = test_pairs(args.out)
    measures = {epochs: [judge(*load(run), tests) for run in of] for epochs, of in runs.items()}
    trained = {epochs: [last_pass(run, epochs) for run in of] for epochs, of in runs.items()}
    margins = {epochs: [pair["reward_chosen"] - pair["reward_rejected"]
                        for pair in scored(*load(of[0]), tests["test_id"])] for epochs, of in runs.items()}
    print(table(measures, trained, best, args.rows))
    figure(measures, trained, margins, best, args.out)


def last_pass(run: Path, epochs: int) -> float:
    """Share of the training pairs that a run ranked right while training, in the last of its passes."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = steps[-(len(steps) // epochs):]
    return mean([step["rewards/accuracies"] for step in last])


def table(measures: dict, trained: dict, best: dict, n: int) -> str:
    """A line for every number of passes over n pairs."""
    lines = [f"{n:,} training pairs; mean ± standard deviation over {len(next(iter(measures.values())))} seeds; "
             f"{N_TEST:,} test pairs per split. Best possible: "
             + ", ".join(f"{split} {value:.3f}" for split, value in best.items()) + "\n"]
    rows = [["epochs", "training pairs", *COLUMNS]]
    for epochs, seeds in measures.items():
        cells = (over_seeds(values(seeds, *measure)) for measure in COLUMNS.values())
        rows.append([epochs, over_seeds(trained[epochs]), *cells])
    lines.append(aligned(rows, ">6", ">16", ">15"))
    lines.append("\ntraining pairs: share ranked right while training, last pass. test: expected accuracy. Loss of "
                 "knowing nothing: 0.693.\ncalib. error, overconfident (mean sigmoid(|margin|) minus share ranked "
                 "right): on test_id.")
    return "\n".join(lines)


def figure(measures, trained, margins, best, out) -> None:
    """Accuracy, loss, calibration and the spread of the margins against the number of passes."""
    from nanopref.judge.plots import plt, save
    fig, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")

    def line(ax, by_epochs, colour, label):
        middle, low, high = zip(*((mean(v), min(v), max(v)) for v in by_epochs))
        ax.plot(EPOCHS, middle, "o-", color=colour, ms=4, label=label)
        ax.fill_between(EPOCHS, low, high, color=colour, alpha=0.15, lw=0)

    line(axes[0], trained.values(), "black", "training pairs")
    for split, colour in zip(SPLITS, ("tab:blue", "tab:orange")):
        for ax, measure in zip(axes, ("expected_accuracy", "nll", "calibration_error")):
            line(ax, [values(seeds, split, measure) for seeds in measures.values()], colour, split)
    axes[0].axhline(best["test_id"], color="black", lw=1, ls="--")
    axes[0].set_title("accuracy\nabove the dashed line: noise learnt by heart", fontsize=10)
    axes[1].axhline(0.693, color="0.8", lw=1, zorder=0)
    axes[1].set_title("loss on unseen pairs, nats\nabove the grey line: worse than not knowing", fontsize=10)
    axes[2].set_title("calibration error\nconfidence minus share ranked right", fontsize=10)
    for ax in axes[:3]:
        ax.set_xscale("log", base=2)
        ax.set_xticks(EPOCHS, map(str, EPOCHS))
        ax.set_xlabel("passes over the training pairs")
    axes[0].legend(frameon=False, fontsize=8)
    for epochs, colour in ((1, "0.55"), (4, "tab:blue"), (16, "tab:red")):
        axes[3].hist(margins[epochs], bins=40, range=(-15, 15), histtype="step", color=colour,
                     label=f"{epochs} pass{'es' * (epochs > 1)}")
    axes[3].set(xlabel="margin chosen - rejected", ylabel="test pairs")
    axes[3].set_title("one seed, test_id\nmargins run to the extremes, on both sides", fontsize=10)
    axes[3].legend(frameon=False, fontsize=8)
    save(fig, Path(out) / "findings" / "overfit.png")


if __name__ == "__main__":
    exit_on_user_error(main)
