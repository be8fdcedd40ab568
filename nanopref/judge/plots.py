"""The figure of a run. Every panel says in its title what is normal."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from nanopref.judge.stats import mean
from nanopref.run.disk import write

CHOSEN, REJECTED, START, POLICY = "tab:green", "tab:red", "0.55", "tab:blue"


def save(fig, path):
    """Writes a figure to `path`, whose folder is made, closes it and says where it is."""
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
    write(path, lambda partial: fig.savefig(partial, dpi=110))
    plt.close(fig)
    print(f"figure: {path}")


def smooth(values, window):
    """Running mean over the last `window` values, same length."""
    out, total = [], 0.0
    for i, v in enumerate(values):
        total += v - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def curve(ax, metrics, key, color, label=None):
    """One metric against the step: every value faint, its running mean strong."""
    points = [(m["step"], m[key]) for m in metrics if key in m]
    if not points:
        return False
    x, y = zip(*points)
    ax.plot(x, y, color=color, alpha=0.2, lw=1)
    ax.plot(x, smooth(y, max(1, len(y) // 20)), color=color, label=label)
    ax.set_xlabel("optimiser step")
    return True


def training_figure(metrics, answers, best_accuracy, config, path):
    """Loss, log-prob changes, margin, accuracy, answer lengths and gold scores on one page at `path`.

    `answers` is {split: {"start" | "policy": answers}} as nanopref/judge/measures.py samples them.
    """
    panels = [_loss, _changes, _margin] if config.stage == "po" else [_loss]
    if any("rewards/accuracies" in m for m in metrics):  # not with unpaired data
        panels.append(_accuracy)
    first = next(iter(answers.values()))
    panels += [_lengths] + ([_gold] if "gold" in first["policy"][0] else [])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.5 * rows), squeeze=False, layout="constrained")
    for ax, panel in zip(axes.flat, panels):
        panel(ax, metrics, answers, best_accuracy, config)
    for ax in axes.flat[len(panels):]:
        ax.remove()
    fig.suptitle(f"{config.loss} on {config.data if config.data == 'world' else 'your data'}, seed {config.seed}")
    save(fig, path)


def _loss(ax, metrics, answers, best, config):
    curve(ax, metrics, "loss", "black")
    ax.set_title("loss" + (" (log 2 = 0.693 at the start)" if config.loss == "dpo" else ""), fontsize=10)


def _changes(ax, metrics, answers, best, config):
    curve(ax, metrics, "logps_change/chosen", CHOSEN, "chosen")
    curve(ax, metrics, "logps_change/rejected", REJECTED, "rejected")
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.set_ylabel("nats per response")
    ax.legend(frameon=False)
    ax.set_title("log-prob minus reference's\nboth falling is normal, the gap is what counts", fontsize=10)


def _margin(ax, metrics, answers, best, config):
    curve(ax, metrics, "rewards/margins", "tab:purple")
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.set_title("reward margin, chosen - rejected\nshould rise", fontsize=10)


def _accuracy(ax, metrics, answers, best, config):
    untied = [m for m in metrics if m.get("rewards/ties", 0) < 1]  # at step 0 policy = reference: all margins are 0
    curve(ax, untied, "rewards/accuracies", "tab:orange", "training pairs")
    ax.axhline(0.5, color="0.8", lw=1, zorder=0)
    if best:
        limit = next(iter(best.values()))
        ax.axhline(limit, color="black", lw=1, ls="--", label=f"best possible on these labels ({limit:.2f})")
    if best or untied:
        ax.legend(frameon=False, fontsize=8)
    ax.set_ylim(0, 1.02)
    ax.set_title("pairs with a positive margin" + ("\nabove the dashed line: fitting label noise" if best else ""),
                 fontsize=10)


def _lengths(ax, metrics, answers, best, config):
    split, by = next(iter(answers.items()))
    values = {who: [len(a["ids"]) for a in given] for who, given in by.items()}
    _histograms(ax, values, f"answer length in tokens, {split}")


def _gold(ax, metrics, answers, best, config):
    split, by = next(iter(answers.items()))
    _histograms(ax, {who: [a["gold"]["total"] for a in given] for who, given in by.items()}, f"gold score, {split}")


def _histograms(ax, values, title):
    low, high = min(map(min, values.values())), max(map(max, values.values()))
    for who, color in (("start", START), ("policy", POLICY)):
        if who in values:
            ax.hist(values[who], bins=25, range=(low, high), color=color, alpha=0.55, label=who)
            ax.axvline(mean(values[who]), color=color, ls="--", lw=1.5)
    ax.legend(frameon=False)
    ax.set_ylabel("answers")
    ax.set_title(f"{title}\ndashed: the mean", fontsize=10)
