"""How accurate is a reward model, what do batch size and a second epoch do, how near is that to what can be known?

    python -m nanopref.findings.accuracy               # 3 seeds, 15 reward models: about 20 minutes on two CPU cores
    python -m nanopref.findings.accuracy --rows 640    # a quick look

The course report (section 2.1) finds 0.57 for an untrained head, 0.70 for a trained one with a batch of 4, and 0.79
with 16; with 16 and two epochs, and for the first steps of 32, it has words and no numbers. It keeps the same peak
learning rate throughout, as here. On the embedded world the labels' noise is known, and with it the best accuracy that
any judge can have. The ± of the untrained head is over one random head a seed, too few to show how much heads differ:
nanopref/findings/two_by_two.py draws 30.
"""
from pathlib import Path

import torch

from nanopref.findings.common import N_TEST, SPLITS, gains, judge, load, sft_models, test_pairs, train, values
from nanopref.findings.seeds import options, over_seeds
from nanopref.judge.tables import aligned
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import exit_on_user_error

SETTINGS = {(batch, epochs): ["--batch-size", batch, "--epochs", epochs]
            for batch, epochs in ((4, 1), (16, 1), (32, 1), (16, 2), (32, 2))}
UNTRAINED = "untrained head"
CLAIMS = {"batch 16 instead of 4, one epoch": ((16, 1), (4, 1)),
          "batch 32 instead of 16, one epoch": ((32, 1), (16, 1)),
          "two epochs instead of one, batch 16": ((16, 2), (16, 1)),
          "two epochs instead of one, batch 32": ((32, 2), (32, 1))}


def main(argv=None) -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    args = options(__doc__).parse_args(argv)
    runs = train(SETTINGS, args)
    tests, best = test_pairs(args.out)
    measures = {setting: [judge(*load(run), tests) for run in of] for setting, of in runs.items()}
    measures[UNTRAINED] = [untrained(start, seed, tests) for seed, start in enumerate(sft_models(args))]
    print(table(measures, best))
    figure(measures, best, args.out)


def untrained(start: Path, seed: int, tests: dict) -> dict:
    """What `judge` gives of a random head on the language model in `start`."""
    torch.manual_seed(seed)
    return judge(*load_model(start, dtype=torch.float32, reward=True), tests)


def table(measures: dict, best: dict) -> str:
    """Every setting in numbers, then the course report's claims: differences between settings, seed by seed."""
    lines = [f"Accuracy on {N_TEST:,} pairs, mean ± standard deviation over {len(measures[UNTRAINED])} seeds. "
             "'expected': against the probabilities\nthat the labels are drawn from, free of their noise. Best "
             "possible: " + ", ".join(f"{split} {value:.3f}" for split, value in best.items()) + ".\n"]
    rows = [["batch", "epochs", "test_id labels", "expected", "of what is possible", "test_ood labels", "expected",
             "loss, nats"]]
    for setting, seeds in measures.items():
        cell = lambda split, name: over_seeds(values(seeds, split, name), 3)
        above = [(value - 0.5) / (best["test_id"] - 0.5) for value in values(seeds, "test_id", "expected_accuracy")]
        batch, epochs = (UNTRAINED, "-") if setting == UNTRAINED else setting
        rows.append([batch, epochs, cell("test_id", "accuracy"), cell("test_id", "expected_accuracy"),
                     over_seeds(above), cell("test_ood", "accuracy"), cell("test_ood", "expected_accuracy"),
                     cell("test_id", "nll")])
    lines.append(aligned(rows, ">14", ">8", ">18", ">16", ">21", ">18", ">16"))
    lines.append("\n'of what is possible': (expected - 0.5) / (best possible - 0.5). Loss: on test_id; log 2 = 0.693 "
                 "knows nothing.")
    for claim, (one, other) in CLAIMS.items():
        gained, better = gains(measures[one], measures[other])
        lines.append(f"{claim}: {over_seeds(gained, 3)} ({better} of {len(gained)} seeds better)")
    return "\n".join(lines)


def figure(measures, best, out) -> None:
    """Expected accuracy of every setting, a dot a seed, between chance and the best possible."""
    from nanopref.judge.plots import plt, save
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True, layout="constrained")
    places = {4: 0, 16: 1, 32: 2}
    for ax, split in zip(axes, SPLITS):
        for setting, seeds in measures.items():
            x, colour, label = -1, "0.55", None
            if setting != UNTRAINED:
                batch, epochs = setting
                x, colour = places[batch] + (epochs - 1.5) * 0.25, ("tab:blue", "tab:orange")[epochs - 1]
                label = f"{epochs} epoch{'s' * (epochs > 1)}" if batch == 32 else None
            y = values(seeds, split, "expected_accuracy")
            ax.plot([x] * len(y), y, "o", color=colour, ms=5, alpha=0.7, label=label)
        ax.axhline(0.5, color="0.8", lw=1, zorder=0)
        ax.axhline(best[split], color="black", lw=1, ls="--")
        ax.text(0, best[split] - 0.012, "best possible", fontsize=8, va="top")
        ax.set_xticks([-1, *places.values()], ["untrained", *map(str, places)])
        ax.set(xlabel="pairs per step", title=f"{split}: a dot is a seed")
    axes[0].set_ylabel("expected accuracy")
    axes[1].legend(frameon=False, loc="lower right")
    save(fig, Path(out) / "findings" / "accuracy.png")


if __name__ == "__main__":
    exit_on_user_error(main)
