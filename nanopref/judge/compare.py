"""Two policies in pictures, and the 2 x 2 of the course report (section 3.2): two reward models judge two policies.

    python -m nanopref.judge.compare runs/world/dpo-seed0-1a2b3c                 # against its own start: lengths, gold
    python -m nanopref.judge.compare DPO_RUN --judges RM_RUN untrained:SFT_RUN   # the report's two judges
    python -m nanopref.judge.compare RUN_A RUN_B --judges RM_A RM_B              # two preference systems

A run is a folder of train_po.py; the answers in its answers.jsonl are matched by prompt. A judge is one of
nanopref/judge/judges.py that scores single answers: a reward model's run or model folder, untrained:DIR (the report's
second reward model) or lm-score:DIR. The first belongs to policy A, the second to policy B: does each favour its own?

A reward has neither unit nor origin. A judge's mean compares two policies, never two judges: that one judge's scores
are all lower, which the report reads as "stricter", says nothing. So differences are taken per prompt and divided by
the standard deviation of that judge's own scores; only these can stand beside another judge's.
"""
import argparse
import json
import statistics
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from nanopref.errors import UserError
from nanopref.judge.judges import Comparing, Gold, Scoring, make, messages_of
from nanopref.judge.measures import clusters_of
from nanopref.judge.stats import mean, mean_se, outcomes, share, win_rate
from nanopref.judge.tables import aligned, plus_minus
from nanopref.run.checkpoint import load_tokenizer
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import pick_device
from nanopref.text import encode_response


def read_answers(run, who, split=None) -> tuple[str, list[dict]]:
    """(split, rows of answers.jsonl) of `who` ("policy" or "start") in a run folder; split None: the first there is."""
    path = Path(run) / "answers.jsonl"
    if not path.is_file():
        raise UserError(f"{run}: no answers.jsonl: give the folder of a finished run of train_po.py")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        first = rows[0]["split"]
        there = {(row["split"], row["who"]): (question(row) + row["answer"], row["finished"]) for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not the answers of a run ({type(error).__name__}: {error}): run it again") from None
    split = split or first
    if (split, who) not in there:
        raise UserError(f"{run}: no answers of its {who} on {split}: it has those of its "
                        + ", ".join(f"{w} on {s}" for s, w in there))
    return split, [row for row in rows if (row["split"], row["who"]) == (split, who)]


def question(answer) -> str:
    """What an answer is matched by: its prompt but for a system message, which each policy may have its own of."""
    return "\n\n".join(turn["content"] for turn in messages_of(answer["prompt"]) if turn["role"] != "system")


def in_common(a, b) -> tuple[list[dict], list[dict]]:
    """The answers of both to the same prompts, in the order of `a`; a prompt asked n times is n prompts."""
    others = defaultdict(list)
    for row in b:
        others[question(row)].append(row)
    pairs = [(row, others[question(row)].pop(0)) for row in a if others[question(row)]]
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} prompts in common, at least 2 are needed: compare runs with the same test data")
    return tuple(map(list, zip(*pairs)))


def answer_ids(tokenizer, answer) -> list[int]:
    """Ids of an answer, with the end of turn only if the policy wrote one."""
    ids = encode_response(tokenizer, answer["answer"])
    return ids if answer["finished"] or len(ids) == 1 else ids[:-1]


def load_judge(name: str, seed: int = 0) -> tuple:
    """(name to show, judge) of a judge of the command line; `seed` draws an untrained head."""
    judge = make(name, pick_device("auto"), seed)
    if isinstance(judge, (Gold, Comparing)):
        raise UserError(f"--judges {name}: expected reward:DIR, untrained:DIR or lm-score:DIR, which score one answer "
                        "(gold judges by itself where it can)")
    return judge.name, judge


def judge_scores(judge, policies) -> list[list[float]]:
    """The score of every answer, a list per policy. policies: lists of answers to the same prompts in the same order;
    the prompt is the first one's, system message included. Equal answers are scored once: in float32 the same tokens
    elsewhere in a batch get another last digit, and one of the two would win."""
    text = lambda answer: answer["answer"]
    given = text if isinstance(judge, Scoring) else lambda answer: tuple(answer_ids(judge.tokenizer, answer))
    asked = [(answers[0]["prompt"], [given(answer) for answer in answers]) for answers in zip(*policies)]
    different = [(prompt, list(dict.fromkeys(answers))) for prompt, answers in asked]
    worth = [dict(zip(answers, scores)) for (_, answers), scores in zip(different, judge.scores(different))]
    return [list(side) for side in zip(*([of[x] for x in answers] for (_, answers), of in zip(asked, worth)))]


def against(a, b, clusters=None) -> dict:
    """One judge on two policies, by its scores of their answers to the same prompts (at least 2), whose errors are
    clustered (see stats.py):

    scores      of A and of B, standardised: minus the mean, by the standard deviation (sd) of all of them
    mean        of A and of B, in this judge's own unit
    win, ties   share of prompts on which A scores higher, [mean, se], a tie as 1/2; share of ties
    interval    95 % of `win` by Wilson; ties make it slightly too wide
    difference  A minus B per prompt, in sd
    shift       mean of `difference`, [mean, se]
    favours     0 or 1: the policy that wins beyond the noise, `interval` leaves out 1/2; None: neither
    """
    middle, sd = statistics.fmean([*a, *b]), statistics.stdev([*a, *b]) or 1.0
    outcome, difference = win_rate(a, b, clusters), [(x - y) / sd for x, y in zip(a, b)]
    _, low, high = share(outcomes(a, b), clusters)
    return {"scores": [[(x - middle) / sd for x in side] for side in (a, b)], "mean": [mean(a), mean(b)],
            **outcome, "interval": (low, high), "difference": difference, "shift": mean_se(difference, clusters),
            "favours": 0 if low > 0.5 else 1 if high < 0.5 else None}


def table(lengths, judged, clusters=None) -> str:
    """The numbers as text. lengths: tokens of A's and of B's answers; judged: {judge: against(...)}."""
    short = lambda name: name.split(":")[0]
    by_side = [["", "A", "B"], ["answers", *map(len, lengths)],
               ["length (tokens)", *(plus_minus(mean_se(side, clusters), 1) for side in lengths)]]
    by_side += [[f"mean score, {short(name)}"[:35], *(f"{x:.2f}" for x in told["mean"])]
                for name, told in judged.items()]
    by_prompt = [["prompt by prompt", "A wins", "ties", "A - B in sd"]]
    by_prompt += [[name[:35], plus_minus(told["win"]), f"{told['ties']:.2f}", plus_minus(told["shift"], sign="+")]
                  for name, told in judged.items()]
    lines = [aligned(by_side, "<36", ">16")]
    if judged:
        lines += ["Compare A with B in a row; the means of two judges have different units.", "",
                  aligned(by_prompt, "<36", ">16")]
    for one, other in combinations(judged, 2):
        x, y = judged[one]["difference"], judged[other]["difference"]
        r = f"{statistics.correlation(x, y):+.2f}" if len(set(x)) > 1 and len(set(y)) > 1 else "none: one is constant"
        lines.append(f"correlation of A - B, {short(one)} with {short(other)}: {r}")
    lines.append("± is one standard error, clustered by subject or prompt; a tie is half a win; sd is of that judge's "
                 "own scores.")
    return "\n".join(lines)


def verdict(judged) -> list[str]:
    """The 2 x 2 in words. judged: {judge: against(...)}; but for "gold", the first is A's judge, the second B's."""
    lines, sides = [], []
    for name, told in judged.items():
        whose, favours = "", told["favours"]
        if name != "gold":
            whose = ", its own policy" if favours == len(sides) else ", not its own policy"
            sides.append(favours)
        side = "neither beyond the noise" if favours is None else f"{'AB'[favours]}{whose}, beyond the noise"
        lines.append("{} favours {}: A wins {:.0%} of prompts, 95 % interval {:.0%} to {:.0%}.".format(
            name, side, told["win"][0], *told["interval"]))
    if len(sides) == 2:
        lines.append("Does each judge favour its own policy? " + (
            "Not shown: a judge that favours neither decides nothing." if None in sides else
            "Yes: two preference systems, and which policy is better depends on whose is asked." if sides == [0, 1] else
            "No, each favours the other's: it has not learnt what its policy has." if sides == [1, 0] else
            f"No, both favour {'AB'[sides[0]]}: on these answers they do not stand for different preferences."))
    if any(": untrained" in name for name in judged):
        lines.append("But an untrained head has no preferences: the same head times -1 is as likely to be drawn and "
                     "says the opposite. Try another --seed.")
    return lines


def main(argv=None) -> None:
    """Read, judge, print, draw."""
    p = Parser(prog="nanopref.judge.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run_a", metavar="RUN_A", help="policy A")
    p.add_argument("run_b", metavar="RUN_B", nargs="?", help="policy B (default: what RUN_A started from)")
    p.add_argument("--judges", nargs="+", default=[], metavar="JUDGE", help="one or two: A's, then B's")
    p.add_argument("--split", metavar="NAME", help="test split (default: the first of RUN_A's)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of an untrained head (default: 0)")
    p.add_argument("--out", default="runs", metavar="DIR", help="the figure goes to DIR/compare (default: runs)")
    args = p.parse_args(argv)
    if len(args.judges) > 2:
        raise UserError(f"--judges takes one or two, not {len(args.judges)}")
    split, a = read_answers(args.run_a, "policy", args.split)
    a, b = in_common(a, read_answers(args.run_b or args.run_a, "policy" if args.run_b else "start", split)[1])
    names = [Path(args.run_a).resolve().name, Path(args.run_b).resolve().name if args.run_b else "start"]
    tokenizer = load_tokenizer(Path(args.run_a) / "model")  # A's for both: one unit
    lengths = [[len(answer_ids(tokenizer, answer)) for answer in side] for side in (a, b)]
    judged, has_gold = {}, all("gold" in answer for answer in a + b)
    clusters = clusters_of([answer["prompt"] for answer in a], has_gold)
    if has_gold:
        judged["gold"] = against(*([answer["gold"] for answer in side] for side in (a, b)), clusters)
    elif not all("n_messages" in answer for answer in a + b):
        print("answers.jsonl of an older run: of a prompt of several messages it has the last only, and that is what "
              "the judges see. For the whole, delete its report.json and repeat its command: it is not trained again.")
    for i, name in enumerate(args.judges, 1):
        shown, judge = load_judge(name, args.seed)
        judged[f"judge {i}: {shown}"] = against(*judge_scores(judge, [a, b]), clusters)
    title = f"A: {names[0]}, B: {names[1]}, on {split}"
    print("\n".join([title, table(lengths, judged, clusters), "", *verdict(judged), ""]))
    from nanopref.judge.plots_compare import figure  # matplotlib takes a second to import
    figure(title, lengths, judged, Path(args.out) / "compare" / f"{'-vs-'.join(names)}-{split}.png")


if __name__ == "__main__":
    exit_on_user_error(main)
