"""Train far too long: what happens to the scale of the rewards, to calibration and to accuracy on other topics?

    python -m nanopref.findings.overfit               # 3 seeds, 15 reward models: about ten minutes on two CPU cores
    python -m nanopref.findings.overfit --rows 300    # a quick look

500 pairs, 1 to 16 passes over them. Document 000 (section 2.3, question 2) warns of both ends: a model that learns the
data set by heart, and scores that run to the extremes. Since about one label in five contradicts the gold reward, a model
that ranks more than four in five TRAINING pairs right has begun to learn noise.
"""
import json

import torch

from ..checkpoint import load_model
from ..config import exit_on_user_error
from ..examples import encode
from ..reward import score_pairs
from ..seeds import options, over_seeds, train_all
from .common import best_possible, judge, save_figure, test_rows

PAIRS, EPOCHS = 500, (1, 2, 4, 8, 16)


def main() -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    args = options(__doc__).parse_args()
    runs = [["--seed", seed, "--out", args.out, "--rows", args.rows or PAIRS, "--epochs", epochs]
            for epochs in EPOCHS for seed in range(args.seeds)]
    folders = train_all([("train_rm.py", arguments) for arguments in runs], args.jobs)
    tests = {split: test_rows(args.out, split) for split in ("test_id", "test_ood")}
    torch.set_num_threads(args.jobs)
    found, margins = {}, {}
    for k, epochs in enumerate(EPOCHS):
        mine = folders[k * args.seeds:(k + 1) * args.seeds]
        found[epochs] = {split: [judge(folder / "model", rows) for folder in mine] for split, rows in tests.items()}
        last = [json.loads(line) for folder in mine for line in (folder / "metrics.jsonl").read_text().splitlines()]
        n = len(last) // (args.seeds * epochs)  # steps of one pass
        found[epochs]["train"] = [sum(row["rewards/accuracies"] for row in last[(i + 1) * epochs * n - n:(i + 1) * epochs * n]) / n
                                  for i in range(args.seeds)]
        model, tokenizer = load_model(mine[0] / "model", dtype=torch.float32)
        pairs = encode(tokenizer, tests["test_id"], ("w", "l"), model.config.max_position_embeddings)[0]
        margins[epochs] = [row["reward_chosen"] - row["reward_rejected"] for row in score_pairs(model, pairs, gold=True)]

    best = {split: best_possible(rows) for split, rows in tests.items()}
    print(f"{args.rows or PAIRS:,} training pairs; mean ± standard deviation over {args.seeds} seeds; {len(tests['test_id']):,} "
          "test pairs per split. Best possible: " + ", ".join(f"{split} {value:.3f}" for split, value in best.items()) + "\n")
    print(f"{'epochs':>6}{'training pairs':>16}{'test_id':>15}{'test_ood':>15}{'loss, nats':>15}{'loss OOD':>15}"
          f"{'calib. error':>15}{'overconfident':>15}{'reward std':>15}")
    for epochs, by in found.items():
        get = lambda split, key: over_seeds([m[key] for m in by[split]])
        print(f"{epochs:6}{over_seeds(by['train']):>16}{get('test_id', 'expected_accuracy'):>15}{get('test_ood', 'expected_accuracy'):>15}"
              f"{get('test_id', 'nll'):>15}{get('test_ood', 'nll'):>15}{get('test_id', 'calibration_error'):>15}"
              f"{get('test_id', 'overconfidence'):>15}{get('test_id', 'reward_std'):>15}")
    print("\ntraining pairs: share ranked right while training, last pass. test: expected accuracy. Loss of knowing nothing: "
          "0.693.\ncalib. error, overconfident (mean sigmoid(|margin|) minus share ranked right): on test_id.")
    figure(found, margins, best, args.out)


def figure(found, margins, best, out) -> None:
    """Accuracy, loss, calibration and the spread of the margins against the number of passes."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")

    def line(ax, values, colour, label):
        middle, low, high = zip(*((sum(v) / len(v), min(v), max(v)) for v in values))
        ax.plot(EPOCHS, middle, "o-", color=colour, ms=4, label=label)
        ax.fill_between(EPOCHS, low, high, color=colour, alpha=0.15, lw=0)

    line(axes[0], [by["train"] for by in found.values()], "black", "training pairs")
    for split, colour in (("test_id", "tab:blue"), ("test_ood", "tab:orange")):
        get = lambda key: [[m[key] for m in by[split]] for by in found.values()]
        line(axes[0], get("expected_accuracy"), colour, split)
        line(axes[1], get("nll"), colour, split)
        line(axes[2], get("calibration_error"), colour, split)
    axes[0].axhline(best["test_id"], color="black", lw=1, ls="--")
    axes[0].set_title("accuracy\nabove the dashed line: noise learnt by heart", fontsize=10)
    axes[1].axhline(0.693, color="0.8", lw=1, zorder=0)
    axes[1].set_title("loss on unseen pairs, nats\nabove the grey line: worse than not knowing", fontsize=10)
    axes[2].set_title("calibration error\nconfidence minus share ranked right", fontsize=10)
    for ax in axes[:3]:
        ax.set_xscale("log", base=2)
        ax.set_xticks(EPOCHS, [str(e) for e in EPOCHS])
        ax.set_xlabel("passes over the training pairs")
    axes[0].legend(frameon=False, fontsize=8)
    for epochs, colour in ((1, "0.55"), (4, "tab:blue"), (16, "tab:red")):
        axes[3].hist(margins[epochs], bins=40, range=(-15, 15), histtype="step", color=colour, label=f"{epochs} passes")
    axes[3].set(xlabel="margin chosen - rejected", ylabel="test pairs")
    axes[3].set_title("one seed, test_id\nmargins run to the extremes, on both sides", fontsize=10)
    axes[3].legend(frameon=False, fontsize=8)
    save_figure(fig, out, "overfit")


if __name__ == "__main__":
    exit_on_user_error(main)
