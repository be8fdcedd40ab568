"""A reward model of real preferences: held-out accuracy with its interval, beside judges that read nothing.

    python -m nanopref.findings.real_data hh-rlhf-harmless-base-test.jsonl.gz              # from random weights
    python -m nanopref.findings.real_data hh-rlhf-harmless-base-test.jsonl.gz --model DIR  # on a pretrained model

Without --model a tokenizer, a base model, an SFT model and the reward model are trained on the file's own text. Every run
is an ordinary run of train_rm.py; further flags go there. A model is worth something if it beats "the longer (or shorter)
answer wins", not just chance.
"""
import json

from ..config import exit_on_user_error
from ..evaluate import wilson
from ..seeds import options, over_seeds, train_all


def main() -> None:
    """Train what is missing, print one line for every judge."""
    p = options(__doc__)
    p.add_argument("data", metavar="FILE|ORG/NAME", help="preference data, as train_rm.py takes it")
    args, flags = p.parse_known_args()
    rows = ["--rows", args.rows] if args.rows else []
    runs = [["--data", args.data, "--seed", seed, "--out", args.out, *rows, *flags] for seed in range(args.seeds)]
    folders = train_all([("train_rm.py", arguments) for arguments in runs], args.jobs)
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    measured = lambda who, key: [report["measures"]["test"][who][key][0] for report in reports]
    n = int(measured("after", "n_pairs")[0])
    print(f"{args.data}: {n} held-out pairs. 95 % interval of a share of so many; ± standard deviation over {args.seeds} seeds.\n")
    for name, values in (("reward model, trained", measured("after", "accuracy")),
                         ("untrained head", measured("before", "accuracy"))):
        low, high = wilson(sum(values) / len(values) * n, n)
        print(f"{name:28}{over_seeds(values, 3):>16}   {low:.3f} to {high:.3f}")
    for name, (share, low, high) in reports[0]["baselines"]["test"].items():
        print(f"{name:28}{share:>16.3f}   {low:.3f} to {high:.3f}")
    print(f"\nloss {over_seeds(measured('after', 'nll'), 3)} nats (knowing nothing: 0.693); calibration error "
          f"{over_seeds(measured('after', 'calibration_error'), 3)}; correlation of score and length "
          f"{over_seeds(measured('after', 'corr_length'))}")


if __name__ == "__main__":
    exit_on_user_error(main)
