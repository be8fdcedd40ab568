"""Look at a preference dataset before anybody trains on it: numbers, one figure, and the findings in words.

    python -m nanopref.judge.look world                  # the embedded world's training pairs
    python -m nanopref.judge.look my.jsonl               # any file, or ORG/NAME on the hub, that train_po.py takes
    python -m nanopref.judge.look my.jsonl --model DIR   # tokens and hidden states of your model, not of the small base model

What to look for: is the longer response chosen (a reward model may learn nothing else)? Do rows contradict each other?
Is the first response of the file preferred? Which words give a side away? Does the model's hidden state hold anything
that tells chosen from rejected, and more than length does? A model that was trained on this very file may have its
chosen responses by heart: take one that was not.
"""
import argparse
import math
import random
import re
import statistics
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref.batch import at_least_float32, collate
from nanopref.data.examples import encode
from nanopref.data.files import read
from nanopref.data.hub import data_files, model_folder
from nanopref.errors import UserError
from nanopref.judge.stats import share
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import SHIPPED_BASE, pick_device
from nanopref.text import encode_response
from nanopref.world import labels

MAPPED, MAX_LENGTH = 1000, 512  # rows in the map, a seeded sample; tokens of prompt + response there
RARE = 5                        # of a word in fewer responses z is no normal variable
TOP = 12                        # words drawn per side


# 1. Counts and shares.
def counts(rows) -> dict:
    """What recurs. `prompts` different prompts, `repeated` of them in more than one row; `duplicates` rows equal to an
    earlier one; `reversed` rows that also occur with the sides changed; `texts` different responses, `both_sides` of
    them chosen here and rejected there, `same_prompt` (prompt, response) for which that is so under one prompt."""
    prompts = Counter(row.key for row in rows)
    labelled = Counter((row.key, row.chosen, row.rejected) for row in rows)
    chosen, rejected = ({(row.key, getattr(row, side)) for row in rows} for side in ("chosen", "rejected"))
    texts = [{text for _, text in side} - {None} for side in (chosen, rejected)]
    return {"prompts": len(prompts), "repeated": sum(n > 1 for n in prompts.values()),
            "duplicates": len(rows) - len(labelled),
            "reversed": sum(n for (key, w, l), n in labelled.items() if (key, l, w) in labelled),
            "texts": len(texts[0] | texts[1]), "both_sides": len(texts[0] & texts[1]),
            "same_prompt": sum(text is not None for _, text in chosen & rejected)}


def longer(chosen, rejected) -> tuple[float, float, float]:
    """The `share` of pairs whose chosen response is the longer one, of two lists of lengths; equal ones count half."""
    return share([1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected)])


def quantile(values, p):
    """The value at p (0 to 1) of the way through the sorted `values`."""
    return sorted(values)[round(p * (len(values) - 1))]


# 2. Words.
def word_counts(texts) -> Counter:
    """word -> number of responses that contain it. A response counts once per word: an answer that says "Paris" five
    times is one witness, and z below takes every count for an independent one. Lower case; "it's" is one word."""
    words = lambda text: set(re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'")))
    return Counter(word for text in texts for word in words(text))


def log_odds(first: Counter, second: Counter) -> dict:
    """word -> z: how surely a word belongs to the first side (> 0) or the second (Monroe, Colaresi and Quinn 2008,
    "Fightin' Words", eqs. 15-22, the log-odds ratio with an informative Dirichlet prior).

        alpha_w = alpha_0 (y1_w + y2_w) / (n1 + n2)
        delta_w = log (y1_w + alpha_w) / (n1 + alpha_0 - y1_w - alpha_w) - the same of side 2
        z_w     = delta_w / sqrt(1 / (y1_w + alpha_w) + 1 / (y2_w + alpha_w))

    y counts of the word, n of all words of a side, alpha_0 the number of different words: one imagined count each on
    average. As n divides, a side with longer responses has no advantage. Empty where a side, or all but one word, is
    missing."""
    n1, n2, words = sum(first.values()), sum(second.values()), sorted(first.keys() | second.keys())
    if not (n1 and n2) or len(words) < 2:
        return {}
    found, alpha_0 = {}, len(words)
    for word in words:
        alpha = alpha_0 * (first[word] + second[word]) / (n1 + n2)
        y1, y2 = first[word] + alpha, second[word] + alpha
        delta = math.log(y1 / (n1 + alpha_0 - y1)) - math.log(y2 / (n2 + alpha_0 - y2))
        found[word] = delta / math.sqrt(1 / y1 + 1 / y2)
    return found


def markers(rows) -> dict:
    """`z` of all words in at least RARE responses; `threshold`: if there is nothing to find, |z| of none of them passes
    it in 19 of 20 files (Bonferroni); `above` how many have |z| > 1.96, and `by_chance` how many of the same words do
    after every row's label was drawn anew, once: the two sides of a pair changed or not."""
    rng = random.Random(0)
    dealt = [replace(row, chosen=row.rejected, rejected=row.chosen) if rng.random() < 0.5 else row for row in rows]
    sides, by_chance = ([word_counts(text for row in given if (text := getattr(row, side)) is not None)
                         for side in ("chosen", "rejected")] for given in (rows, dealt))
    z = {word: value for word, value in log_odds(*sides).items() if sides[0][word] + sides[1][word] >= RARE}
    chance = log_odds(*by_chance)
    return {"z": z, "threshold": statistics.NormalDist().inv_cdf(1 - 0.025 / max(1, len(z))),
            "above": sum(abs(value) > 1.96 for value in z.values()),
            "by_chance": sum(abs(chance.get(word, 0)) > 1.96 for word in z)}


# 3. Map.
@torch.no_grad()
def response_states(model, examples) -> torch.Tensor:
    """(R, d): each response as the mean of the last hidden states over its tokens, the end of turn included."""
    device, states = next(model.parameters()).device, []
    for start in tqdm(range(0, len(examples), 16), "hidden states", leave=False):
        batch = collate(examples[start:start + 16]).to(device)
        hidden = model(batch.input_ids, batch.position_ids, batch.attn_mask()).flatten(0, 1)  # (B*T, d)
        ends = zip(batch.last.tolist(), batch.lengths.tolist())
        states += [at_least_float32(hidden[end - n + 1:end + 1]).mean(0).cpu() for end, n in ends]
    return torch.stack(states)


def pca(x) -> tuple[torch.Tensor, float]:
    """(coordinates (N, 2), share of the variance they hold) of points (N, d), N and d >= 2: the directions of largest
    variance are the first right singular vectors of the centred points. The largest entry of each is made positive."""
    centred = x - x.mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:2] * directions[:2].gather(1, directions[:2].abs().argmax(1, keepdim=True)).sign()
    variance = sizes ** 2
    return centred @ directions.T, (variance[:2].sum() / variance.sum().clamp_min(1e-30)).item()


def separable(differences, prompts) -> list[float]:
    """1, 0 (or 1/2) per pair: does chosen - rejected, (N, d), lie on the right side of a hyperplane fitted to the other
    half of the prompts?

    The plane goes through 0, so that it cannot know which response is which; its normal w is the ridge regression of 1
    on the differences, each dimension scaled to size 1: (X'X + n I) w = X'1. Empty where all pairs have one prompt."""
    names = sorted(set(prompts))
    random.Random(0).shuffle(names)
    half_of, outcomes = {name: i % 2 for i, name in enumerate(names)}, []
    half = torch.tensor([half_of[prompt] for prompt in prompts])
    for k in (0, 1) if len(names) > 1 else ():
        scale = differences[half != k].square().mean(0).sqrt().clamp_min(1e-8)
        x = differences[half != k] / scale
        w = torch.linalg.solve(x.T @ x + len(x) * torch.eye(x.shape[1]), x.sum(0))
        outcomes += ((differences[half == k] / scale @ w).sign() / 2 + 0.5).tolist()
    return outcomes


def hidden_map(rows, model, tokenizer) -> dict:
    """The map of at most MAPPED of the rows, all pairs or all unpaired: `chosen` (N,) bool, `raw` and, for pairs,
    `within`, both as `pca` returns them. Within a pair each response is taken minus the mean of the two: what they
    share, the prompt's topic above all, cancels. `apart`: the `share` of pairs told apart by `separable`, and `longer`
    by their tokens. Empty where fewer than two responses are left to compare."""
    rows = random.Random(0).sample(rows, min(MAPPED, len(rows)))
    is_paired = None not in (rows[0].chosen, rows[0].rejected)
    given = rows if is_paired else [replace(row, chosen=row.chosen or row.rejected) for row in rows]
    longest = min(MAX_LENGTH, model.config.max_position_embeddings)
    examples, cut = encode(tokenizer, given, ("w", "l") if is_paired else ("w",), longest)
    if sum(len(e.responses) for e in examples) < 2:
        return {}
    states = response_states(model.eval(), examples)
    found = {"raw": pca(states), "about": [f"{len(examples):,} rows", *(f"{n} {what}" for what, n in cut.items())]}
    if not is_paired:
        return {**found, "chosen": torch.tensor([e.row.rejected is None for e in examples])}
    half = (states[::2] - states[1::2]) / 2  # the two of a pair lie side by side
    outcomes = separable(half, [e.row.key for e in examples])
    return {**found, "chosen": torch.arange(len(states)) % 2 == 0,
            "within": pca(torch.stack([half, -half], 1).flatten(0, 1)), "apart": share(outcomes) if outcomes else None,
            "longer": longer(*zip(*[map(len, e.responses) for e in examples]))}


# 4. All of it, as a table and in words.
def examine(rows, kind, model, tokenizer) -> dict:
    """Everything that is printed and drawn, of rows that are all "pairs", "unpaired" or "demonstrations". Of a ranking
    the best and the worst response are a pair; those `between` are only counted."""
    sides = [[text for row in rows if (text := getattr(row, side)) is not None] for side in ("chosen", "rejected")]
    found = {"kind": kind, "n": len(rows), "counts": counts(rows), "shares": {}, "map": {}, "markers": {"z": {}},
             "between": sum(len(row.between) for row in rows),
             "words": [[len(text.split()) for text in side] for side in sides],
             "tokens": [[len(encode_response(tokenizer, text)) for text in tqdm(side, "tokens", leave=False)]
                        for side in sides],
             "gaps": [row.scores[0] - row.scores[-1] for row in rows if row.scores]}
    if kind == "pairs":
        found["shares"] = {f"longer is chosen ({unit})": longer(*found[unit]) for unit in ("words", "tokens")}
        if ordered := [row.preferred for row in rows if row.preferred]:
            found["shares"]["first is chosen"] = share([float(which == 1) for which in ordered])
    if kind == "unpaired":
        found["shares"]["labels are true"] = share([float(row.rejected is None) for row in rows])
    if kind != "demonstrations":
        found["markers"], found["map"] = markers(rows), hidden_map(rows, model, tokenizer)
        if found["map"].get("apart"):
            found["shares"]["a plane tells them apart"] = found["map"]["apart"]
    return found


def interval(estimate) -> str:
    """A `share` as text: 0.56 [0.55, 0.57]."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*estimate)


def table(found) -> str:
    """The numbers of `examine`, one a line."""
    n, c = found["n"], found["counts"]
    lines = [(found["kind"], f"{n:,}"), ("prompts", f"{c['prompts']:,}, of which {c['repeated']:,} in several rows"),
             ("rows that repeat another", f"{c['duplicates']:,} ({c['duplicates'] / n:.1%})"),
             ("rows that contradict another", f"{c['reversed']:,} ({c['reversed'] / n:.1%})"),
             ("texts on both sides", f"{c['both_sides']:,} of {c['texts']:,}; {c['same_prompt']:,} under one prompt")]
    if found["between"]:
        lines.insert(1, ("best and worst of rankings", f"the {found['between']:,} responses between are left out"))
    for unit in ("words", "tokens"):
        lines.append((f"mean {unit}", ", ".join(
            f"{side} {statistics.mean(lengths):.1f} (median {statistics.median(lengths):g})"
            for side, lengths in zip(("chosen", "rejected"), found[unit]) if lengths)))
    if gaps := found["gaps"]:
        low, middle, high = (quantile(gaps, p) for p in (0.25, 0.5, 0.75))
        lines.append(("score, chosen - rejected", f"median {middle:.2f}, middle half {low:.2f} to {high:.2f}; "
                      f"negative {sum(gap < 0 for gap in gaps):,}, zero {gaps.count(0):,}"))
    lines += [(name, interval(estimate)) for name, estimate in found["shares"].items()]
    lines += [("in the map", "; ".join(found["map"]["about"]))] if found["map"] else []
    return "\n".join(f"{name:30}{text}" for name, text in lines)


def bias(estimate, first, second) -> str:
    """Which side is chosen more often, by a `share` of pairs, and how often; "" where the interval leaves that open."""
    middle, low, high = estimate
    if low <= 0.5 <= high:
        return ""
    return f"the {first if middle > 0.5 else second} is chosen in {max(middle, 1 - middle):.0%} of the pairs"


def findings(found) -> list[str]:
    """The main things in words, and what each means for training."""
    c, shares, lines = found["counts"], found["shares"], []
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
    elif found["kind"] == "pairs":
        lines.append("The file does not record which response was shown first: a position bias could not be seen.")
    if wrong := sum(gap <= 0 for gap in found["gaps"]):
        lines.append(f"In {wrong / len(found['gaps']):.0%} of the pairs the file's own scores do not put chosen above "
                     "rejected: label noise, or scores of something else.")
    m = found["markers"]
    if z := m["z"]:
        for name, sign in (("chosen", 1), ("rejected", -1)):
            side = sorted((w for w in z if sign * z[w] > m["threshold"]), key=lambda w: -sign * z[w])
            lines.append(f"Words that mark {name} (|z| > {m['threshold']:.1f}): {len(side)}"
                         + (f", above all {', '.join(side[:8])}." if side else "."))
        lines.append(f"|z| > 1.96: {m['above']} of {len(z):,} words. By chance: 5 %, {len(z) / 20:.1f}, if words were "
                     f"independent; {m['by_chance'] or 'none'} when the labels of these very responses are drawn anew.")
    if apart := found["map"].get("apart"):
        right, low, high = apart
        by_length = max(found["map"]["longer"][0], 1 - found["map"]["longer"][0])
        meaning = ("nothing is seen in them that tells the sides apart" if low <= 0.5 <= high else
                   "they hold more of the preference than length" if low > by_length else
                   "no more than length is seen in them")
        lines.append(f"A plane through the hidden states, fitted to other prompts, is right on {right:.0%} of pairs, "
                     f"length alone on {by_length:.0%}: {meaning}.")
    left_out = {"unpaired": "length differences, order, and the map within pairs",
                "demonstrations": "all that compares two sides"}
    if found["kind"] in left_out:
        lines.append(f"Left out, as these rows are {found['kind']}: {left_out[found['kind']]}.")
    return lines


# 5. The figure, one function per panel.
def _lengths(ax, found, plots):
    longest = quantile(sum(found["words"], []), 0.99)
    edges = range(0, longest + 2, 1 + longest // 40)  # whole words: otherwise some bars would hold one length, some two
    for lengths, name, color in zip(found["words"], ("chosen", "rejected"), (plots.CHOSEN, plots.REJECTED)):
        if lengths:
            ax.hist([min(n, edges[-1] - 1) for n in lengths], edges, color=color, alpha=0.5, label=name)
            ax.axvline(statistics.mean(lengths), color=color, ls="--", lw=1.5)
    ax.legend(frameon=False)
    ax.set(xlabel="words (the longest 1 % in the last bar)", ylabel="responses", title="length\ndashed: the mean")


def _differences(ax, found, plots):
    gaps = [c - r for c, r in zip(*found["words"])]
    widest = max(1, quantile(list(map(abs, gaps)), 0.99))
    edges = [k + 0.5 for k in range(0, widest + 1 + widest // 20, 1 + widest // 20)]
    for sign, color, name in ((1, plots.CHOSEN, "chosen is longer"), (-1, plots.REJECTED, "rejected is longer")):
        side = [sign * min(sign * g, widest) for g in gaps if sign * g > 0]
        ax.hist(side, sorted(sign * e for e in edges), color=color, alpha=0.6, label=f"{name}: {len(side):,}")
    ax.bar(0, gaps.count(0), 1, color=plots.START, label=f"as long: {gaps.count(0):,}")
    ax.margins(y=0.35)  # room for the legend
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.set(xlabel="words, chosen - rejected (the widest 1 % in the last bars)", ylabel="pairs",
           title="which of a pair is longer\nright of 0: the chosen one")


def _words(ax, found, plots):
    z, at = found["markers"]["z"], found["markers"]["threshold"]
    order = sorted(z, key=z.get)
    shown = list(dict.fromkeys(order[:TOP] + order[-TOP:]))
    ax.barh(shown, [z[w] for w in shown], color=[plots.CHOSEN if z[w] > 0 else plots.REJECTED for w in shown])
    for line in (-at, at):
        ax.axvline(line, color="black", lw=1, ls=":")
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="z of the log-odds",
           title="words of rejected (red) and chosen (green)\nbeyond the dotted lines: not by chance")


def _map(ax, found, plots, space):
    (points, held), chosen, apart = found["map"][space], found["map"]["chosen"], found["map"].get("apart")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))  # so that no side lies on top
    ax.scatter(*points[order].T, s=5, alpha=0.5, lw=0, c=[plots.CHOSEN if chosen[i] else plots.REJECTED for i in order])
    for side, color in ((chosen, plots.CHOSEN), (~chosen, plots.REJECTED)):
        if side.any():
            ax.plot(*points[side].mean(0), "X", color=color, mec="black", ms=10)
    title = {"raw": "responses by the model's hidden states", "within": "the same minus the mean of their pair"}[space]
    note = f"in all dimensions told apart: {interval(apart)}" if apart and space == "within" else "crosses: the means"
    ax.set(title=f"{title}\n{note}", ylabel="principal component 2",
           xlabel=f"principal component 1 (both: {held:.0%} of the variance)")


def _shares(ax, found, plots):
    of_rows = {name: (found["counts"][key] / found["n"],) * 3 for name, key in
               (("rows that repeat another", "duplicates"), ("rows that contradict another", "reversed"))}
    for name, (middle, low, high) in (of_rows | found["shares"]).items():
        ax.barh(name, middle, color=plots.POLICY, alpha=0.7, xerr=[[middle - low], [high - middle]], capsize=3)
        ax.text(1.23, name, f"{middle:.1%}", va="center", ha="right", fontsize=8)
    ax.axvline(0.5, color="black", lw=1, ls=":")
    ax.set(xlim=(0, 1.25), xlabel="share, with 95 % interval", title="repeats, balance, position\ndotted: neither side")


def figure(found, title, path) -> None:
    """All panels that these rows have something for, on one page."""
    from nanopref.judge import plots  # here: matplotlib is for those who draw
    panels = [_lengths] + [_differences] * (found["kind"] == "pairs") + [_words] * bool(found["markers"]["z"])
    panels += [partial(_map, space=space) for space in ("raw", "within") if space in found["map"]] + [_shares]
    columns = 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    fig = plots.plt.figure(figsize=(4.8 * columns, 4 * rows), layout="constrained")
    for i, panel in enumerate(panels, 1):
        ax = fig.add_subplot(rows, columns, i)
        panel(ax, found, plots)
        ax.title.set_fontsize(10)
    fig.suptitle(title)
    plots.save(fig, path)


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
    found = examine(rows, kind, model, tokenizer)
    said = "\n".join(f"- {line}" for line in findings(found))
    print(f"{data.summary()}\n\n{table(found)}\n\nWhat it holds\n{said}\n")
    figure(found, f"{name}: {len(rows):,} {kind}", Path(args.out) / "look" / f"{name}.png")


if __name__ == "__main__":
    exit_on_user_error(main)
