"""The figure of a preference dataset, one function per panel. Every panel says in its title what to look for."""
import statistics
from functools import partial

import torch

from nanopref.judge.data_set import quantile
from nanopref.judge.plots import CHOSEN, POLICY, REJECTED, START, plt, save
from nanopref.judge.tables import interval

TOP = 12  # words drawn per side


def _lengths(ax, data_set):
    longest = quantile(sum(data_set["words"], []), 0.99)
    edges = range(0, longest + 2, 1 + longest // 40)  # whole words: otherwise some bars would hold one length, some two
    for lengths, name, color in zip(data_set["words"], ("chosen", "rejected"), (CHOSEN, REJECTED)):
        if lengths:
            ax.hist([min(n, edges[-1] - 1) for n in lengths], edges, color=color, alpha=0.5, label=name)
            ax.axvline(statistics.mean(lengths), color=color, ls="--", lw=1.5)
    ax.legend(frameon=False)
    ax.set(xlabel="words (the longest 1 % in the last bar)", ylabel="responses", title="length\ndashed: the mean")


def _differences(ax, data_set):
    gaps = [c - r for c, r in zip(*data_set["words"])]
    widest = max(1, quantile(list(map(abs, gaps)), 0.99))
    edges = [k + 0.5 for k in range(0, widest + 1 + widest // 20, 1 + widest // 20)]
    for sign, color, name in ((1, CHOSEN, "chosen is longer"), (-1, REJECTED, "rejected is longer")):
        side = [sign * min(sign * g, widest) for g in gaps if sign * g > 0]
        ax.hist(side, sorted(sign * e for e in edges), color=color, alpha=0.6, label=f"{name}: {len(side):,}")
    ax.bar(0, gaps.count(0), 1, color=START, label=f"as long: {gaps.count(0):,}")
    ax.margins(y=0.35)  # room for the legend
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.set(xlabel="words, chosen - rejected (the widest 1 % in the last bars)", ylabel="pairs",
           title="which of a pair is longer\nright of 0: the chosen one")


def _words(ax, data_set):
    z, at = data_set["markers"]["z"], data_set["markers"]["threshold"]
    order = sorted(z, key=z.get)
    shown = list(dict.fromkeys(order[:TOP] + order[-TOP:]))
    ax.barh(shown, [z[w] for w in shown], color=[CHOSEN if z[w] > 0 else REJECTED for w in shown])
    for line in (-at, at):
        ax.axvline(line, color="black", lw=1, ls=":")
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="z of the log-odds",
           title="words of rejected (red) and chosen (green)\nbeyond the dotted lines: not by chance")


def _map(ax, data_set, space):
    (points, held), chosen, apart = data_set["map"][space], data_set["map"]["chosen"], data_set["map"].get("apart")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))  # so that no side lies on top
    ax.scatter(*points[order].T, s=5, alpha=0.5, lw=0, c=[CHOSEN if chosen[i] else REJECTED for i in order])
    for side, color in ((chosen, CHOSEN), (~chosen, REJECTED)):
        if side.any():
            ax.plot(*points[side].mean(0), "X", color=color, mec="black", ms=10)
    title = {"raw": "responses by the model's hidden states", "within": "the same minus the mean of their pair"}[space]
    note = f"in all dimensions told apart: {interval(apart)}" if apart and space == "within" else "crosses: the means"
    ax.set(title=f"{title}\n{note}", ylabel="principal component 2",
           xlabel=f"principal component 1 (both: {held:.0%} of the variance)")


def _shares(ax, data_set):
    of_rows = {name: (data_set["counts"][key] / data_set["n"],) * 3 for name, key in
               (("rows that repeat another", "duplicates"), ("rows that contradict another", "reversed"))}
    for name, (middle, low, high) in (of_rows | data_set["shares"]).items():
        ax.barh(name, middle, color=POLICY, alpha=0.7, xerr=[[middle - low], [high - middle]], capsize=3)
        ax.text(1.23, name, f"{middle:.1%}", va="center", ha="right", fontsize=8)
    ax.axvline(0.5, color="black", lw=1, ls=":")
    ax.set(xlim=(0, 1.25), xlabel="share, with 95 % interval", title="repeats, balance, position\ndotted: neither side")


def figure(data_set, title, path) -> None:
    """All panels that these rows have something for, on one page."""
    panels = [_lengths] + [_differences] * (data_set["kind"] == "pairs") + [_words] * bool(data_set["markers"]["z"])
    panels += [partial(_map, space=space) for space in ("raw", "within") if space in data_set["map"]] + [_shares]
    columns = 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    fig = plt.figure(figsize=(4.8 * columns, 4 * rows), layout="constrained")
    for i, panel in enumerate(panels, 1):
        ax = fig.add_subplot(rows, columns, i)
        panel(ax, data_set)
        ax.title.set_fontsize(10)
    fig.suptitle(title)
    save(fig, path)
