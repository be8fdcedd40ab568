"""The command `python -m nanopref.judge.judging`: all judges on the same pairs, what came out as a table and in words,
and a figure of what the order of the answers does to those who compare."""
import argparse
import time
from pathlib import Path

from nanopref.errors import UserError
from nanopref.judge import judges as kinds
from nanopref.judge.judges import Comparing, Gold, averaged, make
from nanopref.judge.measures import clusters_of
from nanopref.judge.stats import mean, mean_se, paired, share
from nanopref.judge.tables import aligned, interval, plus_minus
from nanopref.run import dataset
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import SHIPPED_BASE, DataConfig, pick_device
from nanopref.world import labels


def options() -> Parser:
    """The command line."""
    p = Parser(prog="nanopref.judge.judging", description=kinds.__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--judges", nargs="+", metavar="JUDGE", help="see above (default: gold; the base model, both ways)")
    p.add_argument("--data", default="world", metavar="FILE", help="preferences; judged are the rows that train_rm.py "
                   "holds out (default: the embedded world)")
    p.add_argument("--test-data", metavar="FILE", help="held-out data (default: a seeded tenth of --data's prompts)")
    p.add_argument("--axis", choices=("better", "safer"), help="which of PKU-SafeRLHF's two preferences")
    p.add_argument("--system", metavar="TEXT", help="system message for every conversation of --data that has none")
    p.add_argument("--split", choices=("test_id", "test_ood"), help="of the embedded world (default: test_id)")
    p.add_argument("--rows", type=int, metavar="N", help="pairs to judge; the world makes as many as you ask for "
                   f"(default: {labels.SIZES['test_id']} of the world, all that a file holds out)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of an untrained head (default: 0)")
    p.add_argument("--device", default="auto", help="cpu, cuda, mps (default: cuda, else mps, else cpu)")
    p.add_argument("--out", default="runs", metavar="DIR", help="where the figure goes (default: runs)")
    return p


def main(argv=None) -> None:
    """Judge, print, draw."""
    args = options().parse_args(argv)
    config = DataConfig(data=args.data, test_data=args.test_data, axis=args.axis, system=args.system, rows=args.rows,
                        out=args.out)  # it refuses what does not go together
    is_world, device = args.data == "world", pick_device(args.device)
    if args.split and not is_world:
        raise UserError(f"--split {args.split} goes with the embedded world; of a file the held-out rows are judged")
    specs = args.judges or ["gold"] * is_world + [f"{kind}:{SHIPPED_BASE}" for kind in ("lm-compare", "lm-score")]
    if len(set(specs)) < len(specs) or ("gold" in specs and not is_world):
        raise UserError("--judges: give each judge once; gold knows the embedded world only")
    judges = {spec: make(spec, device, args.seed) for spec in specs}
    split = args.split or ("test_id" if is_world else "test")
    pairs, best = read_pairs(config, split)
    truth = Gold().preferences(pairs) if is_world else None
    clusters = clusters_of([prompt for prompt, *_ in pairs], is_world)
    judged = {spec: judged_by(judge, pairs, truth, clusters) for spec, judge in judges.items()}
    print(f"\n{args.data} {split}, {len(pairs)} pairs\n\n{table(list(judged.values()))}")
    print("P: of the chosen answer. Flips: pairs whose verdict changes when the answers swap places. = N: same verdict "
          "as judge N.")
    if is_world:
        print(f"{truth.count(0.5)} pairs on which gold prefers neither answer are left out of the first column.\n"
              f"Best possible agreement with labels as noisy as these: {best:.2f}.")
    for line in remarks(judges, judged, is_world):
        print(line)
    if comparing := [one for one in judged.values() if one["positions"]]:
        figure(comparing, Path(args.out) / f"judges-{Path(args.data).name.split('.')[0]}-{split}.png")


def read_pairs(config, split) -> tuple:
    """([(prompt, chosen, rejected), ...], best possible agreement with their labels or None where nobody knows)."""
    if config.data == "world":
        rows = labels.pairs(split, config.rows or labels.SIZES[split], seed=0)
        text = lambda row, number: row[f"response_{number}"]
        pairs = [(row["question"], text(row, row["overall_response"]), text(row, 3 - row["overall_response"]))
                 for row in rows]
        return pairs, labels.best_accuracy(rows)
    rows = dataset.load(config).tests["test"][:config.rows]
    pairs = [(row.prompt, row.chosen, row.rejected) for row in rows if row.chosen and row.rejected]
    if not pairs:
        raise UserError(f"{config.data}: none of its {len(rows)} held-out rows is a pair")
    return pairs, None


def judged_by(judge, pairs, truth, clusters) -> dict:
    """One judge on all pairs: its name, preferences, positions (None unless it compares), seconds per pair, and what
    `measure` makes of them."""
    began = time.time()
    positions = judge.positions(pairs) if isinstance(judge, Comparing) else None
    preferences = averaged(positions) if positions else judge.preferences(pairs)
    return {"name": judge.name, "preferences": preferences, "positions": positions,
            "seconds": (time.time() - began) / len(pairs), **measure(preferences, truth, positions, clusters)}


def agreement(one, other) -> list:
    """Of two lists of preferences, per pair: 1 for the same answer, 0 for opposite ones, 1/2 if one prefers neither."""
    verdict = lambda p: 1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5
    return [1 - abs(verdict(p) - verdict(q)) for p, q in zip(one, other)]


def measure(preferences, truth=None, positions=None, clusters=None) -> dict:
    """What is known of one judge of pairs (a chosen, b rejected). truth: gold's P(a is preferred) of each.

    labels    agreement with the label, per pair
    about     what each pair is about (see measures.clusters_of)
    gold      agreement with gold, per pair of which gold prefers one answer; gold_about: what those are about
    distance  mean |P - gold's P|
    first     [mean, se] of P(first is better), both orders; 1/2 without position effect
    flips     share of pairs on which swapping flips the verdict: the same position wins in both orders
    """
    about = clusters or list(range(len(preferences)))
    measures = {"labels": agreement(preferences, [1.0] * len(preferences)), "about": about}
    if truth:
        decided = [i for i, g in enumerate(truth) if g != 0.5]
        agrees = agreement(preferences, truth)
        measures["gold"], measures["gold_about"] = ([given[i] for i in decided] for given in (agrees, about))
        measures["distance"] = mean([abs(p - g) for p, g in zip(preferences, truth)])
    if positions:
        measures["first"] = mean_se([(p + q) / 2 for p, q in positions], about)
        measures["flips"] = mean([(p > 0.5) == (q > 0.5) for p, q in positions])
    return measures


def table(judged) -> str:
    """A judge a line: what `measure` gave, seconds per pair, and its agreement with every judge, by number."""
    share_of = lambda outcomes, about: interval(share(outcomes, about)) if outcomes else "-"
    rows = [["", "agrees with gold", "with the labels", "|P - gold P|", "P(first)", "flips", "s/pair",
             *(f"= {i}" for i in range(1, len(judged) + 1))]]
    for i, one in enumerate(judged, 1):
        rows.append([f"{i} {one['name']}", share_of(one.get("gold"), one.get("gold_about")),
                     share_of(one["labels"], one["about"]),
                     f"{one['distance']:.2f}" if "distance" in one else "-",
                     plus_minus(one["first"]) if "first" in one else "-",
                     f"{one['flips']:.2f}" if "flips" in one else "-", f"{one['seconds']:.3f}",
                     *(f"{mean(agreement(one['preferences'], other['preferences'])):.2f}" for other in judged)])
    return aligned(rows, "<30", ">19", ">19", ">14", ">13", ">7", ">8", ">6")


def compare_with_score(model, comparing, scoring, truth, about=None) -> str:
    """Does this model judge better comparing or scoring? Its agreement with `truth` per pair, either way."""
    gain, error = paired(comparing, scoring, about)
    if error is None:
        return f"{model}: too few pairs to tell comparing from scoring."
    return (f"{model}: comparing agrees with {truth} on {mean(comparing):.1%}, scoring on "
            f"{mean(scoring):.1%}; the difference of {100 * gain:+.1f} ± {100 * error:.1f} points is "
            f"{'beyond' if abs(gain) > 2 * error else 'within'} the noise (two standard errors).")


def remarks(judges, judged, is_world) -> list[str]:
    """Which judge tosses coins, whose inputs were cut, and which of a model's two ways to judge is the better one."""
    lines, (key, by) = [], ("gold", "gold") if is_world else ("labels", "the labels")
    for spec, judge in judges.items():
        mine, scoring = judged[spec][key], judged.get(spec.replace("lm-compare", "lm-score", 1), {}).get(key)
        about = judged[spec].get("gold_about" if is_world else "about")
        if mine and share(mine, about)[1] < 0.5 < share(mine, about)[2]:
            lines.append(f"{judge.name} cannot be told from tossing a coin.")
        if judge.n_cut:
            lines.append(f"{judge.name}: {judge.n_cut} inputs were cut to the model's context.")
        if mine and scoring and spec.startswith("lm-compare"):
            lines.append(compare_with_score(judge.name.split()[-1], mine, scoring, by, about))
    return lines


def figure(judged, path):
    """P(first is better) in one order against the other, a panel per comparing judge."""
    from nanopref.judge.plots import POLICY, plt, save
    size = (3.8 * len(judged), 4.3)
    fig, axes = plt.subplots(1, len(judged), figsize=size, squeeze=False, layout="constrained")
    for ax, one in zip(axes.flat, judged):
        ax.plot([0, 1], [1, 0], color="0.6", ls="--", lw=1)
        ax.scatter(*zip(*one["positions"]), s=10, alpha=0.5, color=POLICY, linewidth=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="P(first is better), chosen answer first",
               ylabel="P(first is better), rejected answer first")
        ax.set_title(f"{one['name']}\ndashed: only the answers count\nabove it the first answer is favoured",
                     fontsize=10)
    save(fig, path)


if __name__ == "__main__":
    exit_on_user_error(main)
