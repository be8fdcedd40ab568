"""F1: how accurate is a reward model, what do batch size and a second epoch do, and how near is that to what can be known?

    python -m nanopref.findings.accuracy               # 3 seeds, 15 reward models: about 20 minutes on two CPU cores
    python -m nanopref.findings.accuracy --rows 640    # a quick look

Document 000 (section 2.1) finds 0.57 for an untrained head, 0.70 for a trained one with a batch of 4, and 0.79 with 16;
with 16 and two epochs, and for the first steps of 32, it has words and no numbers. Its learning rate stays the same
throughout, as here. On the embedded world the labels' noise is known, and with it the best accuracy that any judge can have.
"""
import torch

from ..config import exit_on_user_error, parse_rm
from ..seeds import options, over_seeds, train_all
from .common import best_possible, judge, save_figure, sft_of, test_rows

SETTINGS = [(4, 1), (16, 1), (32, 1), (16, 2), (32, 2)]
SPLITS = ("test_id", "test_ood")


def main() -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    args = options(__doc__).parse_args()
    rows = ["--rows", args.rows] if args.rows else []
    runs = {(batch, epochs, seed): ["--seed", seed, "--batch-size", batch, "--epochs", epochs, "--out", args.out, *rows]
            for batch, epochs in SETTINGS for seed in range(args.seeds)}
    folders = dict(zip(runs, train_all([("train_rm.py", arguments) for arguments in runs.values()], args.jobs)))
    tests = {split: test_rows(args.out, split) for split in SPLITS}
    best = {split: best_possible(rows) for split, rows in tests.items()}
    torch.set_num_threads(args.jobs)

    found = {}  # (batch, epochs) | "untrained head" -> split -> one dict of measures per seed
    for setting in SETTINGS:
        found[setting] = {split: [judge(folders[(*setting, seed)] / "model", rows) for seed in range(args.seeds)]
                          for split, rows in tests.items()}
    starts = [sft_of(parse_rm([str(a) for a in runs[(*SETTINGS[0], seed)]])) for seed in range(args.seeds)]
    found["untrained head"] = {split: [judge(start, rows, untrained_seed=seed) for seed, start in enumerate(starts)]
                               for split, rows in tests.items()}

    print(f"Accuracy on {len(rows := tests['test_id']):,} pairs, mean ± standard deviation over {args.seeds} seeds. 'expected': "
          "against the probabilities\nthat the labels are drawn from, free of their noise. Best possible: "
          + ", ".join(f"{split} {value:.3f}" for split, value in best.items()) + ".\n")
    print(f"{'batch':>14}{'epochs':>8}{'test_id labels':>18}{'expected':>16}{'of what is possible':>21}"
          f"{'test_ood labels':>18}{'expected':>16}{'loss, nats':>16}")
    for setting, by in found.items():
        name = f"{'untrained head':>14}{'-':>8}" if setting == "untrained head" else f"{setting[0]:14}{setting[1]:8}"
        get = lambda split, key: [measures[key] for measures in by[split]]
        above = [(value - 0.5) / (best["test_id"] - 0.5) for value in get("test_id", "expected_accuracy")]
        print(f"{name}{over_seeds(get('test_id', 'accuracy'), 3):>18}{over_seeds(get('test_id', 'expected_accuracy'), 3):>16}"
              f"{over_seeds(above):>21}{over_seeds(get('test_ood', 'accuracy'), 3):>18}"
              f"{over_seeds(get('test_ood', 'expected_accuracy'), 3):>16}{over_seeds(get('test_id', 'nll'), 3):>16}")
    print("\n'of what is possible': (expected - 0.5) / (best possible - 0.5). Loss: on test_id; log 2 = 0.693 knows nothing.")
    print(conclusion(found))
    figure(found, best, args.out)


def conclusion(found) -> str:
    """The two claims of document 000 against the numbers: differences between settings, seed by seed."""
    expected = lambda setting: [measures["expected_accuracy"] for measures in found[setting]["test_id"]]
    lines = []
    for name, better, worse in (("batch 16 instead of 4, one epoch", (16, 1), (4, 1)),
                                ("batch 32 instead of 16, one epoch", (32, 1), (16, 1)),
                                ("two epochs instead of one, batch 16", (16, 2), (16, 1)),
                                ("two epochs instead of one, batch 32", (32, 2), (32, 1))):
        gains = [b - w for b, w in zip(expected(better), expected(worse))]
        lines.append(f"{name}: {over_seeds(gains, 3)} ({sum(gain > 0 for gain in gains)} of {len(gains)} seeds better)")
    return "\n".join(lines)


def figure(found, best, out) -> None:
    """Expected accuracy of every setting, a dot a seed, between chance and the best possible."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True, layout="constrained")
    for ax, split in zip(axes, SPLITS):
        for epochs, colour in ((1, "tab:blue"), (2, "tab:orange")):
            for k, batch in enumerate((4, 16, 32)):
                if (batch, epochs) not in found:
                    continue
                values = [measures["expected_accuracy"] for measures in found[batch, epochs][split]]
                x = k + (epochs - 1.5) * 0.25
                ax.plot([x] * len(values), values, "o", color=colour, ms=5, alpha=0.7,
                        label=f"{epochs} epoch{'s' * (epochs > 1)}" if batch == 32 else None)
        values = [measures["expected_accuracy"] for measures in found["untrained head"][split]]
        ax.plot([-1] * len(values), values, "o", color="0.55", ms=5, alpha=0.7)
        ax.axhline(0.5, color="0.8", lw=1, zorder=0)
        ax.axhline(best[split], color="black", lw=1, ls="--")
        ax.text(-1.3, best[split] - 0.012, "best possible", fontsize=8, va="top")
        ax.set_xticks([-1, 0, 1, 2], ["untrained", "4", "16", "32"])
        ax.set(xlabel="pairs per step", title=f"{split}: a dot is a seed")
    axes[0].set_ylabel("expected accuracy")
    axes[1].legend(frameon=False, loc="lower right")
    save_figure(fig, out, "accuracy")


if __name__ == "__main__":
    exit_on_user_error(main)
