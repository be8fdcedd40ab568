"""The acceptance table: every loss at its default setting, over several seeds, from one command.

    python -m nanopref.findings.acceptance              # 5 seeds, seven losses, about an hour on two CPU cores
    python -m nanopref.findings.acceptance --seeds 2 --losses dpo simpo --lr 2e-4   # further flags go to train_po.py

Every run is an ordinary `train_po.py` run in --out, so a second call reuses what is done and only prints. A seed draws
the training pairs, the demonstrations, the order and the samples; the test prompts and the base model stay the same.
"""
import argparse
import json

from nanopref.findings.seeds import over_seeds, train_all
from nanopref.judge.stats import mean_se
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
    if any(flag.partition("=")[0] in ("--seed", "--loss") for flag in flags):
        p.error("--seed and --loss are what the table runs over: give --seeds N, --losses LOSS ...")
    runs = [(seed, loss) for seed in range(args.seeds) for loss in ("sft", *args.losses)]
    folders = train_all([("train_po.py", ["--loss", loss, "--seed", seed, "--out", args.out,
                                          *(flags if loss != "sft" else [])]) for seed, loss in runs], args.jobs)
    by_seed = [{} for _ in range(args.seeds)]
    for (seed, loss), folder in zip(runs, folders):
        by_seed[seed][loss] = json.loads((folder / "report.json").read_text())

    print(f"Mean ± standard deviation over {args.seeds} seeds. z: smallest gain over SFT in standard errors of any "
          "seed.\n")
    for split in ("test_id", "test_ood"):
        sft = [reports["sft"]["measures"][split]["policy"] for reports in by_seed]
        print(f"{split:10}{'gold score':>14}{'gain':>15}{'z':>6}{'win vs SFT':>15}{'win vs chosen':>15}"
              f"{'KL (nats)':>15}{'tokens':>15}{'over-refusal':>15}")
        print(f"{'SFT':10}{over_seeds([m['score'][0] for m in sft]):>14}{'-':>15}{'-':>6}{'-':>15}"
              f"{over_seeds([m['win_vs_chosen'][0] for m in sft]):>15}{'-':>15}"
              f"{over_seeds([m['length'][0] for m in sft]):>15}{over_seeds([m['over_refusal'][0] for m in sft]):>15}")
        for loss in args.losses:
            runs = [reports[loss]["measures"][split] for reports in by_seed]
            after, before = [r["policy"] for r in runs], [r["start"] for r in runs]
            gains = [a["score"][0] - b["score"][0] for a, b in zip(after, before)]
            z = min(gain / (a["score"][1] ** 2 + b["score"][1] ** 2) ** 0.5 for gain, a, b in zip(gains, after, before))
            cells = [over_seeds([a["score"][0] for a in after]), over_seeds(gains)]
            print(f"{loss:10}{cells[0]:>14}{cells[1]:>15}{z:6.1f}" + "".join(
                f"{over_seeds([a[key][0] for a in after]):>15}"
                for key in ("win_vs_sft", "win_vs_chosen", "kl", "length", "over_refusal")))
        print()

    sft = [reports["sft"]["measures"]["test_id"]["policy"] for reports in by_seed]
    rows = [row for seed in range(args.seeds) for row in labels.pairs("train", labels.SIZES["train"], seed)]
    by_writer = {w.name: mean_se([row[f"gold_{i}"] for row in rows for i in (1, 2) if row[f"writer_{i}"] == w.name])[0]
                 for w in writers.WRITERS}
    best = max(by_writer, key=by_writer.get)
    side = lambda row, k: len(row[f"response_{k}"].split())
    lengths = [sum(side(r, r["overall_response"]) for r in rows), sum(side(r, 3 - r["overall_response"]) for r in rows)]
    print(f"SFT well-formed: {over_seeds([m['well_formed'][0] for m in sft])} (wanted: at least 0.95)")
    headroom = [(by_writer[best] - m["score"][0]) / m["score_sd"][0] for m in sft]
    print(f"headroom from SFT to the best writer ({best}, gold {by_writer[best]:.2f}), in standard deviations of the "
          f"SFT score: {over_seeds(headroom)} (wanted: at least 1)")
    print(f"mean chosen length / mean rejected length, in words: {lengths[0] / lengths[1]:.2f} (wanted: at least 1.15)")
    print(f"best possible accuracy on the training labels: {labels.best_accuracy(rows):.3f}")


if __name__ == "__main__":
    exit_on_user_error(main)
