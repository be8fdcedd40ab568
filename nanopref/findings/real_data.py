"""Does a reward model of real preferences beat chance, and judges that read nothing? Accuracy with its interval.

    python -m nanopref.findings.real_data hh-rlhf-harmless-base-test.jsonl.gz              # from random weights
    python -m nanopref.findings.real_data hh-rlhf-harmless-base-test.jsonl.gz --model DIR  # on a pretrained model

Without --model a tokenizer, a base model, an SFT model and the reward model are trained on the file's own text. Every
run is an ordinary run of train_rm.py. A model is worth something if it beats "the longer (or shorter) answer wins", not
just chance.
"""
import json

from nanopref.findings.common import values
from nanopref.findings.seeds import options, over_seeds, train_all
from nanopref.judge.stats import effective_n, mean, wilson
from nanopref.judge.tables import aligned
from nanopref.run.cli import exit_on_user_error

FLAGS = ("model", "test-data", "axis", "lr", "epochs", "batch-size")  # of train_rm.py, which checks their values


def main(argv=None) -> None:
    """Train what is missing, print one line for every judge."""
    p = options(__doc__)
    p.add_argument("data", metavar="FILE|ORG/NAME", help="preference data, as train_rm.py takes it")
    for name in FLAGS:
        p.add_argument(f"--{name}", dest=name, metavar="X", help="as train_rm.py takes it")
    args = p.parse_args(argv)
    given = {**{name: getattr(args, name) for name in FLAGS}, "rows": args.rows}
    flags = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    runs = [["--data", args.data, "--seed", seed, "--out", args.out, *flags] for seed in range(args.seeds)]
    folders = train_all([("train_rm.py", arguments) for arguments in runs], args.jobs)
    print(f"{args.data}: {table([json.loads((folder / 'report.json').read_text()) for folder in folders])}")


def table(reports: list) -> str:
    """One report.json per seed in words."""
    before, after = ([{"test": {name: value for name, (value, _) in report["measures"]["test"][who].items()}}
                      for report in reports] for who in ("before", "after"))
    over = lambda name, digits: over_seeds(values(after, "test", name), digits)
    n = int(after[0]["test"]["n_pairs"])
    rows = []
    for name, key, who in (("reward model, trained", "after", after), ("untrained head", "before", before)):
        shares = values(who, "test", "accuracy")
        of = [report["measures"]["test"][key] for report in reports]  # pairs of one prompt are not independent
        alone = mean([effective_n(told["accuracy"], n, told["n_clusters"][0]) for told in of])
        rows.append([name, over_seeds(shares, 3), "{:.3f} to {:.3f}".format(*wilson(mean(shares) * alone, alone))])
    for name, (share, low, high) in reports[0]["baselines"]["test"].items():
        rows.append([name, f"{share:.3f}", f"{low:.3f} to {high:.3f}"])
    return (f"{n} held-out pairs. 95 % interval of a share of so many; ± standard deviation over {len(reports)} "
            f"seeds.\n\n{aligned(rows, '<28', '>16', '>17')}\n"
            f"\nloss {over('nll', 3)} nats (knowing nothing: 0.693); calibration error {over('calibration_error', 3)}; "
            f"correlation of score and length {over('corr_length', 2)}")


if __name__ == "__main__":
    exit_on_user_error(main)
