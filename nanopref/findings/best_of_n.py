"""Over-optimisation: what becomes of the true reward when a learned one picks the best of n answers?

    python -m nanopref.findings.best_of_n              # 3 seeds, 27 reward models: about 20 minutes on two CPU cores
    python -m nanopref.findings.best_of_n --seeds 1 --rows 300 --prompts 8 --samples 16      # a quick look, a minute

The learned reward of what is picked rises with n, and the gold reward with it at first; where it turns down, only the
learned reward's mistakes are still maximised (Gao, Schulman and Hilton 2023, "Scaling laws for reward model
overoptimization"). Here for reward models of 375, 1,500 and 6,000 pairs, and for ensembles of three (same data and
trunk, other head and order): their mean and their minimum (Coste et al. 2023). All see each pair once, 16 a step, so
steps differ as the pairs do: 23, 93, 375.

The SFT model answers each prompt N times at temperature 1 and top-p 1: the SFT policy itself is sampled. What to expect
of the best of n <= N is then a sum, without drawing and without bias (as in Nakano et al. 2021, WebGPT),

    sum over i of C(i-1, n-1) / C(N, n) * gold (or learned) reward of the i-th smallest by learned reward,

as that is how likely the i-th smallest is the largest of a random subset of n. Ties are broken by lot. The noise grows
with n: at N it is one answer per prompt. KL(best of n || SFT) = log n - (n-1)/n nats if no answer can occur twice, less
otherwise (Beirami et al. 2024): our small model repeats itself, so it is an upper bound.

A reward has neither unit nor origin: labels compare answers to one prompt. So a member's rewards are distances from
their mean over a prompt's samples, in standard deviations of these over all samples, before members are combined and
again after. "single": each member picks alone, average over the three. "Turns down" on a seed: gold at the peak minus
gold at the last n exceeds two standard errors, paired over prompts; a peak sought on the same prompts favours a fall.
"""
import functools
import json
import math
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref.errors import UserError
from nanopref.findings.common import sft_models, standardised, write_rows
from nanopref.findings.seeds import options, over_seeds, train_all
from nanopref.judge.measures import MAX_NEW_TOKENS, clusters_of
from nanopref.judge.stats import paired
from nanopref.judge.tables import aligned
from nanopref.reward import score_answers
from nanopref.run.checkpoint import digest, load_model
from nanopref.run.cli import exit_on_user_error, positive
from nanopref.run.reuse import hash_of
from nanopref.run.source import code_of
from nanopref.sample import generate
from nanopref.text import decode, encode_prompt
from nanopref.world import labels
from nanopref.world.gold import gold_reward

SIZES, MEMBERS = (375, 1500, 6000), 3  # training pairs; reward models per size and seed
COLOURS = {"gold": "black", "untrained": "0.55", "single": "tab:blue", "mean": "tab:orange", "minimum": "tab:purple"}


@functools.cache
def places(N: int, ns: tuple) -> torch.Tensor:
    """(len(ns), N) float64: the probability that the i-th smallest of N is the largest of a random subset of n."""
    return torch.tensor([[math.comb(i, n - 1) / math.comb(N, n) for i in range(N)] for n in ns], dtype=torch.float64)


def best_of(learned, values, ns: tuple) -> torch.Tensor:
    """(len(ns),) float64: expected value of what has the highest learned reward in a random n of N. Both are (N,)."""
    _, group, size = learned.unique(return_inverse=True, return_counts=True)  # equal rewards, ascending
    means = torch.zeros(len(size), dtype=torch.float64).index_add(0, group, values.double()) / size
    return places(len(learned), ns) @ means.repeat_interleave(size)


def kl(n: int) -> float:
    """log n - (n-1)/n, nats: KL(best of n || policy) is at most this."""
    return math.log(n) - (n - 1) / n


def curves(judges, gold, ns: tuple) -> torch.Tensor:
    """(2, P, len(ns)): expected gold and standardised learned reward of what M judges pick for each of P prompts,
    averaged over the judges. judges: their rewards (M, P, N); gold: (P, N)."""
    by_judge = torch.zeros(len(judges), 2, len(gold), len(ns), dtype=torch.float64)
    for m, learned in enumerate(standardised(judges)):  # (P, N)
        for p in range(len(gold)):
            by_judge[m, 0, p] = best_of(learned[p], gold[p], ns)
            by_judge[m, 1, p] = best_of(learned[p], learned[p], ns)
    return by_judge.mean(0)


def summary(curves_of_seed, ns: tuple, about=None) -> dict:
    """One seed's curves (2, P, len(ns)) in numbers: mean gold reward at its `peak` and at the `last` n, the peak's `n`
    and `kl`, the `fall` from peak to last and its standard `error`, clustered by what the prompts are `about`, the
    `learned` reward at the last."""
    gold, learned = curves_of_seed  # (P, len(ns)) each
    curve = gold.mean(0)
    top = int(curve.argmax())
    fall, error = paired(gold[:, top].tolist(), gold[:, -1].tolist(), about)
    return {"peak": curve[top].item(), "last": curve[-1].item(), "n": ns[top], "kl": kl(ns[top]), "fall": fall,
            "error": error, "down": error is not None and fall > 2 * error, "learned": learned[:, -1].mean().item()}


def draw(start: Path, prompts: list, N: int, seed: int) -> list[tuple]:
    """N answers of the model folder `start` to each prompt in turn: [(prompt, ids), ...]."""
    model, tokenizer = load_model(start)
    asked = [encode_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    answers = generate(model.eval(), asked, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, samples=N,
                       max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, top_p=1.0, seed=seed, progress=True)
    return [(prompt, tuple(ids)) for prompt, several in zip(prompts, answers) for ids in several]


def learned_rewards(folder: Path, samples: list, N: int) -> torch.Tensor:
    """(P, N) by the reward model in `folder`, or by a random head on the language model there."""
    model, tokenizer = load_model(folder, dtype=torch.float32, reward=True)
    different = list(dict.fromkeys(samples))  # each is scored once, so that its copies are exact ties
    rewards, _ = score_answers(model, tokenizer, [(prompt, [ids]) for prompt, ids in different])
    reward_of = {sample: reward for sample, [reward] in zip(different, rewards)}
    return torch.tensor([reward_of[sample] for sample in samples]).view(-1, N)


def judged(start: Path, members: dict, samples: list, N: int, ns: tuple) -> dict:
    """{(training pairs or "-", who picks): curves} of one seed; `members` is {training pairs: folders of runs}."""
    tokenizer = load_model(start)[1]
    gold = torch.tensor([gold_reward(prompt, decode(tokenizer, ids))["total"] for prompt, ids in samples]).view(-1, N)
    picked = {("-", "gold"): curves(gold[None], gold, ns),
              ("-", "untrained"): curves(learned_rewards(start, samples, N)[None], gold, ns)}
    for size, folders in members.items():
        each = standardised(torch.stack([learned_rewards(folder / "model", samples, N) for folder in folders]))
        for name, judges in (("single", each), ("mean", each.mean(0)[None]), ("minimum", each.amin(0)[None])):
            picked[size, name] = curves(judges, gold, ns)
    return picked


def main(argv=None) -> None:
    """Train and sample what is missing, score it, print the table, draw the figure."""
    p = options(__doc__)
    p.add_argument("--prompts", type=positive, default=40, metavar="N", help="test prompts (default: 40)")
    p.add_argument("--samples", type=positive, default=256, metavar="N", help="answers to each (default: 256)")
    args = p.parse_args(argv)
    N, folder, seeds, out = args.samples, Path(args.out) / "findings", range(args.seeds), ["--out", args.out]
    if min(args.prompts, N) < 2:
        raise UserError("--prompts and --samples must be at least 2")
    sizes, ns = sorted({min(size, args.rows or size) for size in SIZES}), tuple(2 ** k for k in range(N.bit_length()))
    rows = labels.pairs("test_id", 200, seed=1)
    prompts = list(dict.fromkeys(row["question"] for row in rows))[:args.prompts]
    test = write_rows(folder / "data" / "test_id-200.jsonl", rows)  # train_rm.py wants one for its own report
    pairs = [write_rows(folder / "data" / f"world-train-seed{seed}.jsonl", labels.pairs("train", max(SIZES), seed))
             for seed in seeds]
    start = sft_models(args)
    runs = {(seed, size, k): ["--model", start[seed], "--data", pairs[seed], "--test-data", test, "--rows", size,
                              "--lr", 3e-4, "--batch-size", 16, "--epochs", 1, "--seed", MEMBERS * seed + k, *out]
            for seed in seeds for size in sizes for k in range(MEMBERS)}
    trained = dict(zip(runs, train_all([("train_rm.py", run) for run in runs.values()], args.jobs)))
    torch.set_num_threads(args.jobs)
    by_seed, different = [], []
    for seed in tqdm(seeds, "sampling and scoring"):
        made_by = hash_of([digest(start[seed]), code_of("nanopref.findings.best_of_n.draw"), prompts, N, seed])
        path = folder / f"samples-{made_by[:6]}.jsonl"
        path = path if path.exists() else write_rows(path, draw(start[seed], prompts, N, seed))
        samples = [(prompt, tuple(ids)) for prompt, ids in map(json.loads, path.open())]
        different.append(len(set(samples)) / len(prompts))
        torch.manual_seed(seed)  # decides the untrained head
        members = {size: [trained[seed, size, k] for k in range(MEMBERS)] for size in sizes}
        by_seed.append(judged(start[seed], members, samples, N, ns))
    print(f"Best of n on {len(prompts)} prompts of test_id; mean ± standard deviation over {args.seeds} seeds. Of the "
          f"{N} samples of a prompt, {over_seeds(different, 0)} are different.\n\n"
          f"{table(by_seed, ns, clusters_of(prompts, gold=True))}")
    figure(by_seed, sizes, ns, args.out)


def table(by_seed, ns, about=None) -> str:
    """Who picks, how far the gold reward rises and falls, and the outcome in words."""
    first, down, N = over_seeds([picked["-", "gold"][0, :, 0].mean().item() for picked in by_seed]), [], ns[-1]
    rows = [["pairs", "  picked by", "gold at peak", "n of the peak", "KL <= (nats)", f"gold, n = {N}", "fall", "se",
             "learned (sd)", "turns down"]]
    for size, name in by_seed[0]:
        seeds = [summary(picked[size, name], ns, about) for picked in by_seed]
        over = lambda key: over_seeds([seed[key] for seed in seeds])
        errors = [seed["error"] for seed in seeds]
        turned = f"{sum(seed['down'] for seed in seeds)} of {len(seeds)}"
        if size != "-" and any(seed["down"] for seed in seeds):
            down.append(f"{size} {name} ({turned} seeds)")
        rows.append([size, f"  {name}", over("peak"), " ".join(str(seed["n"]) for seed in seeds), over("kl"),
                     over("last"), over("fall"), "?" if None in errors else f"{statistics.mean(errors):.2f}",
                     over("learned"), turned])
    lines = [aligned(rows, ">5", "<12", ">13", ">15", ">14", ">15", ">13", ">6", ">14", ">12")]
    outcome = (f"Before n = {N} the gold reward turns down, beyond the noise, under: {', '.join(down)}." if down else
               f"No gold curve turns down beyond the noise up to n = {N}: no over-optimisation was found.")
    return "\n".join([*lines, f"\nGold at n = 1: {first}. Learned: at n = {N}. se: the fall's, over prompts.", outcome])


def figure(by_seed, sizes, ns, out) -> None:
    """Gold reward above, learned below, a column per number of training pairs; shaded: ± a deviation over seeds."""
    from nanopref.judge.plots import plt, save
    fig, axes = plt.subplots(2, len(sizes), figsize=(1 + 4.2 * len(sizes), 7), sharex=True, sharey="row",
                             squeeze=False, layout="constrained")
    for column, size in zip(axes.T, sizes):
        for key in [key for key in by_seed[0] if key[0] in ("-", size)]:
            means = torch.stack([picked[key].mean(1) for picked in by_seed])  # (seeds, 2, len(ns))
            middle, spread = means.mean(0), means.std(0, correction=min(1, len(means) - 1))
            style = dict(color=COLOURS[key[1]], label=key[1], ls="--" if key[0] == "-" else "-")
            for ax, y, sd in list(zip(column, middle, spread))[:1 if key[0] == "-" else 2]:  # below: trained models
                ax.plot(range(len(ns)), y, **style)
                ax.fill_between(range(len(ns)), y - sd, y + sd, color=style["color"], alpha=0.15, lw=0)
            column[0].plot(int(middle[0].argmax()), middle[0].max(), "o", color=style["color"])
        column[0].set_title(f"reward models of {size:,} pairs: gold reward\na dot is a mean curve's peak", fontsize=10)
        column[1].set_title("learned reward: can only rise", fontsize=10)
        column[1].set_xticks(range(len(ns)), [f"{n}\n{kl(n):.1f}" for n in ns])
        column[1].set_xlabel("n\nKL <= (nats)")
    axes[0, 0].set_ylabel("gold reward of the best of n (points)")
    axes[1, 0].set_ylabel("its learned reward (sd of all samples')")
    axes[0, 0].legend(frameon=False, fontsize=8, title="picked by", title_fontsize=8)
    save(fig, Path(out) / "findings" / "best_of_n.png")


if __name__ == "__main__":
    exit_on_user_error(main)
