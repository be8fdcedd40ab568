"""What does each option of train_rm.py do to accuracy, and to how the score follows length beyond gold reward?

    python -m nanopref.findings.options               # 3 seeds, 24 reward models: a quarter of an hour on two CPU cores
    python -m nanopref.findings.options --rows 640    # a quick look

Length bias is measured inside pairs (the course report, section 2.3, question 3, names three remedies and measures
none): the differences chosen - rejected of score, gold reward and length, each divided by its root mean square, and
least squares score = a gold + b length. b is the effect of length beyond quality; 0 for the gold reward itself.

`margin 0.5` is given more than labels: the gold scores of both responses. `ranking 4` learns from as many responses as
the others from pairs, so from half as many prompts in half as many steps. A rule about length acts twice, in training
and in scoring; two rows take it apart: a model trained with the penalty and scored without it, and one trained without
and scored with it (L0, the mean training length, is that of the penalty's run on the same seed).
"""
from pathlib import Path

from nanopref.findings.common import COLOURS, N_TEST, SPLITS, gains, judge, load, test_pairs, train, values
from nanopref.findings.seeds import options, over_seeds
from nanopref.judge.tables import aligned
from nanopref.run.cli import exit_on_user_error

PENALTY = "length-penalty 0.03"
SETTINGS = {"none": [], "center 0.01": ["--center", 0.01], "margin 0.5": ["--margin", 0.5],
            "ranking 4": ["--ranking", 4], PENALTY: ["--length-penalty", 0.03],
            "length-alpha 25": ["--length-alpha", 25],
            "length-alpha 25, center 0.01": ["--length-alpha", 25, "--center", 0.01],
            "balance-length": ["--balance-length"]}
COLUMNS = (("test_id", "accuracy", "labels"), ("test_id", "expected_accuracy", "expected"),
           ("test_ood", "expected_accuracy", "expected OOD"), ("test_id", "length_beyond_gold", "b: length"),
           ("test_ood", "length_beyond_gold", "b OOD"), ("test_id", "corr_length", "corr. length"),
           ("test_id", "reward_mean", "reward mean"), ("test_id", "reward_std", "reward std"))


def main(argv=None) -> None:
    """Train what is missing, judge everything on the same pairs, print the table, draw the figure."""
    args = options(__doc__).parse_args(argv)
    runs = train(SETTINGS, args)
    tests, best = test_pairs(args.out)
    measures = {name: [judge(*load(run), tests) for run in of] for name, of in runs.items()}
    measures |= in_one_place(runs, tests)
    print(table(measures, best))
    figure(measures, args.out)


def in_one_place(runs: dict, tests: dict) -> dict:
    """The two rows whose length penalty acts in training only and in scoring only."""
    in_training, in_scoring = [], []
    for pair in zip(runs[PENALTY], runs["none"]):
        (penalised, tokenizer), (plain, _) = map(load, pair)
        plain.length_rule, penalised.length_rule = penalised.length_rule, None
        in_training.append(judge(penalised, tokenizer, tests))
        in_scoring.append(judge(plain, tokenizer, tests))
    return {f"{PENALTY}, scored without": in_training, "none, penalty 0.03 in scoring only": in_scoring}


def table(measures: dict, best: dict) -> str:
    """Every option in numbers, then its expected accuracy against none, seed by seed."""
    lines = [f"{N_TEST:,} pairs per split; mean ± standard deviation over {len(measures['none'])} seeds. Best possible "
             "expected accuracy: " + ", ".join(f"{split} {value:.3f}" for split, value in best.items()) + "\n"]
    rows = [["option", *(title for *_, title in COLUMNS)]]
    rows += [[name, *(over_seeds(values(seeds, split, measure)) for split, measure, _ in COLUMNS)]
             for name, seeds in measures.items()]
    lines += [aligned(rows, "<36", ">14"), ""]
    for name, seeds in list(measures.items())[1:]:
        gained, better = gains(seeds, measures["none"])
        lines.append(f"{name}: expected accuracy {over_seeds(gained, 3)} against none on the same seed "
                     f"({better} of {len(gained)} better)")
    return "\n".join(lines)


def figure(measures, out) -> None:
    """Accuracy against length bias, a dot a seed: up and towards 0 is better."""
    from nanopref.judge.plots import plt, save
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for ax, split in zip(axes, SPLITS):
        for k, (name, seeds) in enumerate(measures.items()):
            ax.plot(values(seeds, split, "length_beyond_gold"), values(seeds, split, "expected_accuracy"),
                    "os^"[k // len(COLOURS)], color=COLOURS[k % len(COLOURS)], ms=6, alpha=0.75, label=name)
        ax.axvline(0, color="0.8", lw=1, zorder=0)
        ax.set(xlabel="b: effect of length beyond gold", ylabel="expected accuracy",
               title=f"{split}: up is right, the grey line is unbiased")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(fig, Path(out) / "findings" / "options.png")


if __name__ == "__main__":
    exit_on_user_error(main)
