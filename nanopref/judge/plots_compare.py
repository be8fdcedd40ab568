"""The figure of two policies under their judges. A is blue, B grey."""
import statistics
from functools import partial

from nanopref.judge.plots import CHOSEN, POLICY, REJECTED, START, plt, save
from nanopref.judge.stats import mean


def figure(title, lengths, judged, path) -> None:
    """Lengths; each judge's differences; the 2 x 2 as box plots; judge against judge."""
    panels = [lambda ax: _lengths(ax, lengths)]
    panels += [partial(_differences, name=name, values=told["difference"]) for name, told in judged.items()]
    panels += [lambda ax: _boxes(ax, judged)] * bool(judged)
    two = [told["difference"] for name, told in judged.items() if name != "gold"]
    panels += [lambda ax: _judge_against_judge(ax, *two)] * (len(two) == 2)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    fig = plt.figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
    for i, panel in enumerate(panels, 1):
        ax = fig.add_subplot(rows, columns, i)
        panel(ax)
        ax.title.set_fontsize(10)
    fig.suptitle(title)
    save(fig, path)


def _lengths(ax, lengths):
    for side, name, color in zip(lengths, "AB", (POLICY, START)):
        ax.hist(side, bins=25, range=(0, max(map(max, lengths))), color=color, alpha=0.55, label=name)
        ax.axvline(statistics.fmean(side), color=color, ls="--", lw=1.5)
    ax.set(title="length of the answers\ndashed: the mean", xlabel="tokens", ylabel="answers")
    ax.legend(frameon=False)


def _differences(ax, name, values):
    sides = [[d for d in values if d < 0], [d for d in values if d > 0]]
    reach = max(map(abs, values)) or 1.0
    ax.hist(sides, bins=24, range=(-reach, reach), color=(REJECTED, CHOSEN), stacked=True)
    below, above = (len(side) / len(values) for side in sides)
    ax.set(title=f"{name[:45]}\nB better on {below:.0%} of prompts, A on {above:.0%}", ylabel="prompts",
           xlabel="A - B, sd of this judge (ties left out)")


def _boxes(ax, judged):
    for i, told in enumerate(judged.values()):
        for side, dx, color in zip(told["scores"], (-0.18, 0.18), (POLICY, START)):
            ax.boxplot([side], positions=[i + dx], widths=0.3, patch_artist=True, flierprops=dict(markersize=2),
                       boxprops=dict(facecolor=color, alpha=0.55), medianprops=dict(color="black"))
    ax.set_xticks(range(len(judged)), [name.split(":")[0] for name in judged])
    ax.set(title="A blue, B grey: compare within a judge only", ylabel="score, sd of its judge")


def _judge_against_judge(ax, one, other):
    ax.scatter(one, other, s=9, color="black", alpha=0.5, lw=0)
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        share = mean([p * x > 0 and q * y > 0 for p, q in zip(one, other)])
        ax.text(0.5 + 0.46 * x, 0.5 + 0.46 * y, f"{share:.0%}", transform=ax.transAxes, ha="center", va="center",
                color="tab:purple", weight="bold")
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    ax.set(title="A - B: top right both prefer A, bottom left both B", xlabel="judge 1, sd", ylabel="judge 2, sd")
