"""Does every loss beat its SFT start? The acceptance table: each at its default setting, over several seeds.

    python -m nanopref.findings.acceptance              # 5 seeds, seven losses, about an hour on two CPU cores
    python -m nanopref.findings.acceptance --seeds 2 --losses dpo simpo --lr 2e-4   # further flags go to train_po.py

Every run is an ordinary `train_po.py` run in --out, so a second call reuses what is done and only prints. A seed draws
the training pairs, the demonstrations, the order and the samples; the test prompts and the base model stay the same.
"""
import argparse
import json

from nanopref.findings.seeds import over_seeds, train_all
from nanopref.judge.stats import mean
from nanopref.judge.tables import aligned
from nanopref.run.cli import Parser, exit_on_user_error, positive
from nanopref.world import labels, writers

LOSSES = ("dpo", "ln_dpo", "simpo", "ipo", "kto", "cpo", "orpo")


def main(argv=None) -> None:
    """Run what is missing, then print the table."""
    p = Parser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=positive, default=5, help="seeds 0 .. N-1 (default: 5)")
    p.add_argument("--losses", nargs="+", default=LOSSES, help=f"default: {' '.join(LOSSES)}")
    p.add_argument("--out", default="runs", help="where runs are kept (default: runs)")
    p.add_argument("--jobs", type=positive, default=2, help="seeds trained at a time, one thread each (default: 2)")
    args, flags = p.parse_known_args(argv)
    if any(flag.partition("=")[0] in ("--seed", "--loss", "--model") for flag in flags):
        p.error("--seed and --loss are what the table runs over, from the SFT model: give --seeds N, --losses LOSS ...")
    runs = [(seed, loss) for seed in range(args.seeds) for loss in args.losses]
    folders = train_all([("train_po.py", ["--loss", loss, "--seed", seed, "--out", args.out, *flags])
                         for seed, loss in runs], args.jobs)
    by_seed = [{} for _ in range(args.seeds)]
    for (seed, loss), folder in zip(runs, folders):
        by_seed[seed][loss] = json.loads((folder / "report.json").read_text())

    print(f"Mean ± standard deviation over {args.seeds} seeds. z: smallest gain over SFT of any seed in its "
          "standard errors, paired by prompt and clustered by subject.\n")
    for split in ("test_id", "test_ood"):
        print(table(split, by_seed, args.losses) + "\n")
    print("\n".join(wanted([reports[args.losses[0]]["measures"]["test_id"]["start"] for reports in by_seed])))


def table(split, by_seed, losses) -> str:
    """A loss a line; `by_seed`: {loss: report.json} of every seed."""
    over = lambda measures, key: over_seeds([of[key][0] for of in measures])
    sft = [reports[losses[0]]["measures"][split]["start"] for reports in by_seed]  # the same of all losses
    rows = [[split, "gold score", "gain", "z", "win vs SFT", "win vs chosen", "KL (nats)", "tokens", "over-refusal"],
            ["SFT", over(sft, "score"), "-", "-", "-", over(sft, "win_vs_chosen"), "-", over(sft, "length"),
             over(sft, "over_refusal")]]
    for loss in losses:
        runs = [reports[loss]["measures"][split] for reports in by_seed]
        after = [run["policy"] for run in runs]
        gains = [run["gain"]["score"] for run in runs]  # paired and clustered
        z = f"{min(gain / error for gain, error in gains):.1f}" if all(error for _, error in gains) else "?"
        rows.append([loss, over(after, "score"), over_seeds([gain for gain, _ in gains]), z,
                     *(over(after, key) for key in ("win_vs_sft", "win_vs_chosen", "kl", "length", "over_refusal"))])
    return aligned(rows, "<10", ">14", ">15", ">6", ">15")


def wanted(sft) -> list[str]:
    """What the world must offer, so that the table can mean something: SFT models that speak well and can still get
    better (`sft`: every seed's measures on test_id), and labels that like length."""
    rows = [row for seed in range(len(sft)) for row in labels.pairs("train", labels.SIZES["train"], seed)]
    by_writer = {w.name: mean([row[f"gold_{i}"] for row in rows for i in (1, 2) if row[f"writer_{i}"] == w.name])
                 for w in writers.WRITERS}
    best = max(by_writer, key=by_writer.get)
    headroom = [(by_writer[best] - of["score"][0]) / of["score_sd"][0] for of in sft]
    n_words = lambda row, number: len(row[f"response_{number}"].split())
    chosen = sum(n_words(row, row["overall_response"]) for row in rows)
    rejected = sum(n_words(row, 3 - row["overall_response"]) for row in rows)
    return [f"SFT well-formed: {over_seeds([of['well_formed'][0] for of in sft])} (wanted: at least 0.95)",
            f"headroom from SFT to the best writer ({best}, gold {by_writer[best]:.2f}), in standard deviations of the "
            f"SFT score: {over_seeds(headroom)} (wanted: at least 1)",
            f"mean chosen length / mean rejected length, in words: {chosen / rejected:.2f} (wanted: at least 1.15)",
            f"best possible accuracy on the training labels: {labels.best_accuracy(rows):.3f}"]


if __name__ == "__main__":
    exit_on_user_error(main)
