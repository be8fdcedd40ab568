"""What each option of train_rm.py does to accuracy, and to how strongly the score follows length beyond the gold reward.

    python -m nanopref.findings.options               # 3 seeds, 24 reward models: about a quarter of an hour on two CPU cores
    python -m nanopref.findings.options --rows 640    # a quick look

Length bias is measured inside pairs (document 000, section 2.3, question 3, names three remedies and measures none): the
differences chosen - rejected of score, gold reward and length, each divided by its root mean square, and least squares
score = a gold + b length. b is the effect of length beyond quality; 0 for the gold reward itself.
"""
import torch

from ..config import exit_on_user_error
from ..seeds import options, over_seeds, train_all
from .common import COLOURS, best_possible, judge, save_figure, test_rows

SETTINGS = {"none": [], "center 0.01": ["--center", 0.01], "margin 0.5": ["--margin", 0.5],
            "ranking 4": ["--ranking", 4], "length-penalty 0.03": ["--length-penalty", 0.03],
            "length-alpha 25": ["--length-alpha", 25],
            "the same, center 0.01": ["--length-alpha", 25, "--center", 0.01], "balance-length": ["--balance-length"]}


def main() -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    args = options(__doc__).parse_args()
    rows = ["--rows", args.rows] if args.rows else []
    runs = [["--seed", seed, "--out", args.out, *flags, *rows] for flags in SETTINGS.values() for seed in range(args.seeds)]
    folders = iter(train_all([("train_rm.py", arguments) for arguments in runs], args.jobs))
    tests = {split: test_rows(args.out, split) for split in ("test_id", "test_ood")}
    torch.set_num_threads(args.jobs)
    found = {}
    for name in SETTINGS:
        models = [next(folders) / "model" for _ in range(args.seeds)]
        found[name] = {split: [judge(model, rows) for model in models] for split, rows in tests.items()}

    print(f"{len(tests['test_id']):,} pairs per split; mean ± standard deviation over {args.seeds} seeds. Best possible "
          "expected accuracy: " + ", ".join(f"{split} {best_possible(rows):.3f}" for split, rows in tests.items()) + "\n")
    columns = (("test_id", "accuracy", "labels"), ("test_id", "expected_accuracy", "expected"), ("test_ood", "expected_accuracy", "expected OOD"),
               ("test_id", "length_beyond_gold", "b: length"), ("test_ood", "length_beyond_gold", "b OOD"),
               ("test_id", "corr_length", "corr. length"), ("test_id", "reward_mean", "reward mean"),
               ("test_id", "reward_std", "reward std"))
    print(f"{'option':22}" + "".join(f"{title:>16}" for *_, title in columns))
    for name, by in found.items():
        print(f"{name:22}" + "".join(f"{over_seeds([m[key] for m in by[split]]):>16}" for split, key, _ in columns))

    plain = [m["expected_accuracy"] for m in found["none"]["test_id"]]
    for name, by in list(found.items())[1:]:
        gains = [m["expected_accuracy"] - p for m, p in zip(by["test_id"], plain)]
        print(f"{name}: expected accuracy {over_seeds(gains, 3)} against none on the same seed "
              f"({sum(gain > 0 for gain in gains)} of {len(gains)} better)")
    figure(found, args.out)


def figure(found, out) -> None:
    """Accuracy against length bias, a dot a seed: up and towards 0 is better."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, split in zip(axes, ("test_id", "test_ood")):
        for k, (name, by) in enumerate(found.items()):
            x, y = ([m[key] for m in by[split]] for key in ("length_beyond_gold", "expected_accuracy"))
            ax.plot(x, y, "os^"[k // len(COLOURS)], color=COLOURS[k % len(COLOURS)], ms=6, alpha=0.75, label=name)
        ax.axvline(0, color="0.8", lw=1, zorder=0)
        ax.set(xlabel="b: effect of length beyond gold", ylabel="expected accuracy",
               title=f"{split}: up is right, the grey line is unbiased")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(fig, out, "options")


if __name__ == "__main__":
    exit_on_user_error(main)
