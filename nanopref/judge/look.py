"""Look at a preference dataset before anybody trains on it: numbers, one figure, and the findings in words.

    python -m nanopref.judge.look world                  # the embedded world's training pairs
    python -m nanopref.judge.look my.jsonl               # any file, or ORG/NAME on the hub, that train_po.py takes
    python -m nanopref.judge.look my.jsonl --model DIR   # tokens and hidden states of your model

What to look for: is the longer response chosen (a reward model may learn nothing else)? Do rows contradict each other?
Is the first response of the file preferred? Which words give a side away? Does the model's hidden state hold anything
that tells chosen from rejected, and more than length does? A model that was trained on this very file may have its
chosen responses by heart: take one that was not.
"""
import argparse
import statistics
from pathlib import Path

import torch

from nanopref.data.files import read
from nanopref.data.hub import data_files, model_folder
from nanopref.errors import UserError
from nanopref.judge.data_set import examine, quantile
from nanopref.judge.tables import aligned, interval
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import SHIPPED_BASE, pick_device
from nanopref.world import labels


def table(data_set) -> str:
    """The numbers of `examine`, one a line."""
    n, c = data_set["n"], data_set["counts"]
    lines = [(data_set["kind"], f"{n:,}"), ("prompts", f"{c['prompts']:,}, of which {c['repeated']:,} in several rows"),
             ("rows that repeat another", f"{c['duplicates']:,} ({c['duplicates'] / n:.1%})"),
             ("rows that contradict another", f"{c['reversed']:,} ({c['reversed'] / n:.1%})"),
             ("texts on both sides", f"{c['both_sides']:,} of {c['texts']:,}; {c['same_prompt']:,} under one prompt")]
    if data_set["between"]:
        lines.insert(1, ("best and worst of rankings", f"the {data_set['between']:,} responses between are left out"))
    for unit in ("words", "tokens"):
        lines.append((f"mean {unit}", ", ".join(
            f"{side} {statistics.mean(lengths):.1f} (median {statistics.median(lengths):g})"
            for side, lengths in zip(("chosen", "rejected"), data_set[unit]) if lengths)))
    if gaps := data_set["gaps"]:
        low, middle, high = (quantile(gaps, p) for p in (0.25, 0.5, 0.75))
        lines.append(("score, chosen - rejected", f"median {middle:.2f}, middle half {low:.2f} to {high:.2f}; "
                      f"negative {sum(gap < 0 for gap in gaps):,}, zero {gaps.count(0):,}"))
    lines += [(name, interval(estimate)) for name, estimate in data_set["shares"].items()]
    lines += [("in the map", "; ".join(data_set["map"]["about"]))] if data_set["map"] else []
    return aligned(lines, "<30", "<")


def bias(estimate, first, second) -> str:
    """Which side is chosen more often, by a `share` of pairs, and how often; "" where the interval leaves that open."""
    middle, low, high = estimate
    if low <= 0.5 <= high:
        return ""
    return f"the {first if middle > 0.5 else second} is chosen in {max(middle, 1 - middle):.0%} of the pairs"


def findings(data_set) -> list[str]:
    """The main things in words, and what each means for training."""
    c, shares, lines = data_set["counts"], data_set["shares"], []
    if length := shares.get("longer is chosen (words)"):
        seen = bias(length, "longer response", "shorter response")
        lines.append(f"{seen.capitalize()}: a baseline to beat." if seen else
                     "Length is not seen to tell chosen from rejected.")
    if c["reversed"] or c["duplicates"]:
        lines.append(f"{c['duplicates']:,} rows repeat an earlier one and count more than once; {c['reversed']:,} also "
                     "occur the other way round, where nobody can be right on both.")
    if first := shares.get("first is chosen"):
        seen = bias(first, "first response of the file", "second response of the file")
        lines.append(f"Position bias: {seen}." if seen else
                     "No position bias is seen: both places are chosen equally often.")
    elif data_set["kind"] == "pairs":
        lines.append("The file does not record which response was shown first: a position bias could not be seen.")
    if wrong := sum(gap <= 0 for gap in data_set["gaps"]):
        lines.append(f"In {wrong / len(data_set['gaps']):.0%} of the pairs the file's own scores do not put chosen "
                     "above rejected: label noise, or scores of something else.")
    m = data_set["markers"]
    if z := m["z"]:
        for name, sign in (("chosen", 1), ("rejected", -1)):
            side = sorted((w for w in z if sign * z[w] > m["threshold"]), key=lambda w: -sign * z[w])
            lines.append(f"Words that mark {name} (|z| > {m['threshold']:.1f}): {len(side)}"
                         + (f", above all {', '.join(side[:8])}." if side else "."))
        lines.append(f"|z| > 1.96: {m['above']} of {len(z):,} words. By chance: 5 %, {len(z) / 20:.1f}, if words were "
                     f"independent; {m['by_chance'] or 'none'} when the labels of these very responses are drawn anew.")
    if apart := data_set["map"].get("apart"):
        right, low, high = apart
        by_length = max(data_set["map"]["longer"][0], 1 - data_set["map"]["longer"][0])
        meaning = ("nothing is seen in them that tells the sides apart" if low <= 0.5 <= high else
                   "they hold more of the preference than length" if low > by_length else
                   "no more than length is seen in them")
        lines.append(f"A plane through the hidden states, fitted to other prompts, is right on {right:.0%} of pairs, "
                     f"length alone on {by_length:.0%}: {meaning}.")
    left_out = {"unpaired": "length differences, order, and the map within pairs",
                "demonstrations": "all that compares two sides"}
    if data_set["kind"] in left_out:
        lines.append(f"Left out, as these rows are {data_set['kind']}: {left_out[data_set['kind']]}.")
    return lines


def main(argv=None) -> None:
    """The command line: read, examine, print, draw."""
    p = Parser(prog="python -m nanopref.judge.look", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", metavar="FILE", help="preference data: a file, ORG/NAME on the hub, or the word world")
    p.add_argument("--axis", choices=("better", "safer"), help="which of PKU-SafeRLHF's two preferences to look at")
    p.add_argument("--model", default=str(SHIPPED_BASE), metavar="DIR|ORG/NAME", help="whose tokens and hidden states "
                   "(default: data/base, which has only read about the embedded world)")
    p.add_argument("--rows", type=int, metavar="N", help="look only at the first N rows")
    p.add_argument("--strict", action="store_true", help="a row that would be dropped is an error instead")
    p.add_argument("--out", default="runs", metavar="DIR", help="the figure goes to DIR/look/NAME.png (default: runs)")
    args = p.parse_args(argv)
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows must be at least 1, got {args.rows}")
    path = Path(args.out) / "world" / "data-seed0" / "train.jsonl"
    if args.file == "world":
        labels.make(path.parent, 0)
    data = read(path if args.file == "world" else data_files(args.file)["train"], args.strict, args.axis)
    model, tokenizer = load_model(model_folder(args.model), pick_device("auto"), torch.float32)
    rows, name = data.rows[:args.rows], Path(args.file).name.split(".")[0]
    kind = next((kind for kind in ("unpaired", "demonstrations") if data.format.endswith(kind)), "pairs")
    data_set = examine(rows, kind, model, tokenizer)
    said = "\n".join(f"- {line}" for line in findings(data_set))
    print(f"{data.summary()}\n\n{table(data_set)}\n\nWhat it holds\n{said}\n")
    from nanopref.judge.plots_data import figure  # matplotlib takes a second to import
    figure(data_set, f"{name}: {len(rows):,} {kind}", Path(args.out) / "look" / f"{name}.png")


if __name__ == "__main__":
    exit_on_user_error(main)
