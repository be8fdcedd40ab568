"""The figure of a reward model. Every panel says in its title what to see or what is normal."""
import math

from nanopref.judge.measures_rm import calibration, interval, measure
from nanopref.judge.plots import CHOSEN, POLICY, REJECTED, START, curve, plt, save
from nanopref.judge.stats import mean, wilson
from nanopref.judge.tables import plus_minus

SIDES = (("chosen", CHOSEN), ("rejected", REJECTED))
SPLITS = (POLICY, "tab:orange", "tab:purple")  # a colour per test split


def reward_figure(metrics, scored, best_accuracy, config, path):
    """One page at `path`: training, rewards before and after it, reward against length and gold, calibration.

    `metrics` are the rows of metrics.jsonl, `scored` is {split: {"before" | "after": pairs as in measures_rm.py}}.
    Pictures of single responses show the first split."""
    split, by = next(iter(scored.items()))
    is_balanced = config.knobs["balance_length"]
    panels = [lambda ax: _loss(ax, metrics), lambda ax: _accuracy(ax, metrics, scored, best_accuracy, is_balanced),
              lambda ax: _histogram(ax, by["before"], f"{split}, untrained head\nthe two should lie on each other"),
              lambda ax: _histogram(ax, by["after"], f"{split}, trained\nchosen to the right; overlap is normal: only\n"
                                                     "differences inside a pair have a meaning"),
              lambda ax: _boxes(ax, by, split), lambda ax: _length(ax, by["after"], split),
              lambda ax: _calibration(ax, scored)]
    if "gold_chosen" in by["after"][0]:
        panels.insert(6, lambda ax: _gold(ax, by["after"], split))
    fig, axes = plt.subplots(2, 4, figsize=(18, 8), layout="constrained")
    for ax, panel in zip(axes.flat, panels):
        panel(ax)
    for ax in axes.flat[len(panels):]:
        ax.remove()
    fig.suptitle(f"reward model on {config.data if config.data == 'world' else 'your data'}, seed {config.seed}")
    save(fig, path)


def _values(pairs, name, side):
    return [pair[f"{name}_{side}"] for pair in pairs]


def _loss(ax, metrics):
    curve(ax, metrics, "loss", "black")
    ax.axhline(math.log(2), color="0.6", lw=1, ls="--")
    ax.set_ylabel("loss per pair (nats)")
    right = ax.twinx()
    right.plot([m["step"] for m in metrics], [m["lr"] for m in metrics], color=POLICY, lw=1)
    right.set_ylabel("learning rate", color=POLICY)
    right.ticklabel_format(axis="y", scilimits=(0, 0))
    ax.set_title("training loss and learning rate\ndashed: log 2, knowing nothing", fontsize=10)


def _accuracy(ax, metrics, scored, best, is_balanced):
    curve(ax, metrics, "rewards/accuracies", "0.3", "training pairs")
    last = metrics[-1]["step"]
    for i, ((split, by), color) in enumerate(zip(scored.items(), SPLITS)):
        measured, x = measure(by["after"]), last * (1.04 + 0.05 * i)
        ax.plot([x, x], interval(measured), color=color)
        ax.plot(x, measured["accuracy"][0], "o", ms=4, color=color, label=split)
    ax.axhline(0.5, color="0.8", lw=1, zorder=0)
    if best:
        limit = next(iter(best.values()))
        ax.axhline(limit, color="black", lw=1, ls="--", label=f"best possible ({limit:.2f})")
    ax.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("share of pairs")
    warning = ("training above the dashed line: fitting label noise" if best and not is_balanced else
               "training pairs balanced by length, the dashed line is not theirs" if best else
               "training far above testing: learnt by heart")
    ax.set_title(f"pairs ranked right (bars: 95 %)\n{warning}", fontsize=10)


def _histogram(ax, pairs, title):
    values = {side: _values(pairs, "reward", side) for side, _ in SIDES}
    low, high = min(map(min, values.values())), max(map(max, values.values()))
    for side, color in SIDES:
        ax.hist(values[side], bins=25, range=(low, high), color=color, alpha=0.5, label=side)
        ax.axvline(mean(values[side]), color=color, ls="--", lw=1.5)
    ax.set_xlabel("reward (dashed: the mean)")
    ax.set_ylabel("responses")
    ax.legend(frameon=False)
    ax.set_title(title, fontsize=10)


def _boxes(ax, by, split):
    rewards = [_values(by[who], "reward", side) for who in ("before", "after") for side, _ in SIDES]
    drawn = ax.boxplot(rewards, widths=0.6, patch_artist=True, medianprops={"color": "black"},
                       flierprops={"markersize": 2, "alpha": 0.5})
    for box, (_, color) in zip(drawn["boxes"], SIDES * 2):
        box.set(facecolor=color, alpha=0.5)
    ax.set_xticks(range(1, 5), ["chosen\nuntrained", "rejected\nuntrained", "chosen\ntrained", "rejected\ntrained"])
    ax.set_ylabel("reward")
    ax.set_title(f"untrained against trained, {split}\ntraining spreads rewards, chosen above rejected", fontsize=10)


def _length(ax, pairs, split):
    for side, color in SIDES:
        ax.scatter(_values(pairs, "length", side), _values(pairs, "reward", side), s=14, alpha=0.6, lw=0, color=color,
                   label=side)
    ax.set_xlabel("length (tokens)")
    ax.set_ylabel("reward")
    ax.legend(frameon=False)
    r = measure(pairs).get("corr_length")
    ax.set_title(f"reward against length, {split}, trained\n" + (
        f"correlation {plus_minus(r, sign='+')}; rises where length pays" if r else "correlation undefined"),
                 fontsize=10)


def _gold(ax, pairs, split):
    gold, reward = ([c - r for c, r in zip(_values(pairs, name, "chosen"), _values(pairs, name, "rejected"))]
                    for name in ("gold", "reward"))
    ends = [min(gold), max(gold)]
    ax.plot(ends, ends, color="black", lw=1, ls="--", label="the truth")
    ax.scatter(gold, reward, s=14, alpha=0.6, color=POLICY, lw=0)
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    ax.set_xlabel("gold reward, chosen - rejected (left of 0: label noise)")
    ax.set_ylabel("reward, chosen - rejected")
    ax.legend(frameon=False)
    r = measure(pairs).get("corr_gold")
    ax.set_title(f"differences inside pairs, {split}, trained\n" + (
        f"correlation {plus_minus(r, sign='+')}; flatter than the line: too unsure" if r else "correlation undefined"),
                 fontsize=10)


def _calibration(ax, scored):
    ax.plot([0.5, 1], [0.5, 1], color=START, lw=1, ls="--")
    for i, ((split, by), color) in enumerate(zip(scored.items(), SPLITS)):
        for k, (predicted, observed, n) in enumerate(calibration(by["after"])):
            low, high = wilson(observed * n, n)
            x = predicted + 0.006 * (i - (len(scored) - 1) / 2)  # beside each other
            ax.plot([x, x], [low, high], color=color, lw=1)
            ax.scatter(x, observed, s=200 * n / len(by["after"]), color=color, alpha=0.7, lw=0,
                       label=None if k else split)
    for handle in ax.legend(frameon=False, loc="lower right").legend_handles:
        handle.set_sizes([30])
    ax.set_xlim(0.48, 1.02)
    ax.set_xlabel("the model's confidence in its choice")
    ax.set_ylabel("share in which the label agrees")
    ax.set_title("calibration (size: pairs, bars: 95 %)\nbelow the diagonal: too sure of itself", fontsize=10)
