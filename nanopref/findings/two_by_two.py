"""Does each judge favour the policy trained on its own preferences? (course report, section 3.2, figures 9 and 10)

    python -m nanopref.findings.two_by_two                      # 3 seeds: 21 runs, those of other findings reused
    python -m nanopref.findings.two_by_two --rows 64 --prompts 6 # a quick look

1. As in the report: a DPO policy and its SFT start, judged by a trained reward model and by an untrained head on the
   SFT trunk. It finds that the untrained one favours the start, and explains it by familiarity. But a random head w and
   -w are equally likely and give opposite answers, so one of them says nothing: here HEADS are drawn per seed.
2. Two preference systems: the annotator groups "curious" and "hurried" of nanopref/world/. A DPO policy and a reward
   model per group, each from 3,000 pairs with the group's labels; both policies are judged by both reward models and
   by both groups' true rewards.

A judge favours a policy beyond the noise if the 95 % interval of the share of prompts it wins leaves out 1/2 (see
nanopref/judge/compare.py). Scores of two judges are never compared.
"""
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref.findings.common import sft_models, write_rows
from nanopref.findings.pluralism import runs_of, write_data
from nanopref.findings.seeds import options, over_seeds, train_all
from nanopref.judge.compare import against, judge_scores, load_judge, read_answers
from nanopref.judge.measures import clusters_of
from nanopref.judge.tables import aligned
from nanopref.run.cli import exit_on_user_error, positive
from nanopref.run.config import STAGES
from nanopref.world import labels

HEADS, GROUPS = 10, ("curious", "hurried")
AGAINST = ("curious", "start"), ("hurried", "start"), GROUPS


def runs(args) -> dict:
    """{(seed, name): folder} of every run, trained where missing: sft (its model), dpo, rm; a dpo and rm per group."""
    seeds, rows = range(args.seeds), ["--rows", args.rows] if args.rows else []
    usual = {s: ["--seed", s, "--out", args.out] for s in seeds}
    asked = ["--prompts", args.prompts]
    sft = {(s, "sft"): start for s, start in enumerate(sft_models(args))}
    data, po, todo = Path(args.out) / "findings" / "data", STAGES["po"], {}
    prompts = write_rows(data / "test-prompts.jsonl", labels.pairs("test_id", 200, 0))  # one set for both groups
    for s in seeds:
        todo[s, "rm"] = "train_rm.py", [*usual[s], *rows]
        todo[s, "dpo"] = "train_po.py", ["--loss", "dpo", *usual[s], *asked, *rows]
        files, start = write_data(data, s), sft[s, "sft"]
        for group in GROUPS:
            todo[s, "rm", group] = runs_of(files, start, s, args.out, args.rows)[group]  # the same run as pluralism's
            todo[s, "dpo", group] = "train_po.py", [
                "--loss", "dpo", "--data", files[group][0], "--test-data", prompts, "--model", start,
                "--lr", po["lr"], "--batch-size", po["batch_size"], *usual[s], *asked, *rows]
    return {**sft, **dict(zip(todo, train_all(todo.values(), args.jobs)))}


def judge(folders, seed, n) -> tuple[dict, list, dict]:
    """One seed on its first n prompts: ({judge: DPO against start}, the same of every random head, {judge: {(policy,
    policy): one against the other}} for the groups)."""
    said = lambda who, *run: read_answers(folders[seed, *run], who)[1][:n]

    def scores_by(name, policies, draw=0):
        _, judge = load_judge(name, draw)
        return judge_scores(judge, policies)

    pair = [said("policy", "dpo"), said("start", "dpo")]
    about = clusters_of([a["prompt"] for a in pair[0]], gold=True)
    both = {"gold": against(*([a["gold"] for a in policy] for policy in pair), about),
            "trained": against(*scores_by(str(folders[seed, "rm"]), pair), about)}
    heads = [against(*scores_by(f"untrained:{folders[seed, 'sft']}", pair, seed * HEADS + i), about)
             for i in range(HEADS)]
    policies = {"start": said("start", "dpo", GROUPS[0]), **{g: said("policy", "dpo", g) for g in GROUPS}}
    by_judge = {}
    for group in GROUPS:
        learnt = scores_by(str(folders[seed, "rm", group]), policies.values())
        true = [[labels.group_reward(group, a["prompt"], a["answer"]) for a in policy] for policy in policies.values()]
        for name, scores in ((f"{group} reward model", learnt), (f"{group} true reward", true)):
            scores = dict(zip(policies, scores))
            by_judge[name] = {(a, b): against(scores[a], scores[b], about) for a, b in AGAINST}
    return {**both, "untrained": heads[0]}, heads, by_judge


def favour(judge: str, seeds: list, own: int, policies) -> str:
    """One judge in words. seeds: against(...) of every seed; own: which of the two `policies` is the judge's."""
    mine, other = (sum(told["favours"] == side for told in seeds) for side in (own, 1 - own))
    answer = "yes" if mine == len(seeds) else "no" if other == len(seeds) else "not on every seed"
    return (f"Does the {judge} favour {policies[own]}, its own, over {policies[1 - own]}? {answer.capitalize()}: "
            f"beyond the noise for it on {mine} of {len(seeds)} seeds, against it on {other}.")


def row(name: str, *comparisons) -> list[str]:
    """Of a table: A's win rate in each comparison (against(...) of every seed), the last one's difference."""
    wins = [over_seeds([told["win"][0] for told in seeds]) for seeds in comparisons]
    return [name, *wins, over_seeds([told["shift"][0] for told in comparisons[-1]])]


def figure(firsts: dict, heads: list, groups: dict, out: str) -> None:
    """The report's judges, the random heads, the two preference systems; judges: {name: against(...) of every seed}."""
    from nanopref.judge.plots import CHOSEN, POLICY, REJECTED, START, plt, save
    fig, axes = plt.subplots(1, 3, figsize=(14.5, 3.9), layout="constrained")
    colours = ("black", POLICY, START), ("tab:blue", "tab:cyan", "tab:red", "tab:orange")
    for ax, by_judge, colour_of in zip(axes[::2], (firsts, groups), colours):
        for y, (seeds, colour) in enumerate(zip(by_judge.values(), colour_of)):
            for i, told in enumerate(seeds):
                ax.plot(told["interval"], [y + 0.15 * i] * 2, color=colour)
                ax.plot(told["win"][0], y + 0.15 * i, "o", color=colour)
        ax.set_yticks(range(len(by_judge)), by_judge)
        ax.invert_yaxis()
    axes[0].set(title="the report's two judges and the truth", xlabel="share of prompts DPO wins against its start")
    axes[2].set(title="two preference systems", xlabel="share of prompts curious DPO wins against hurried")
    sides = [[told["win"][0] for told in heads if told["favours"] == side] for side in (1, None, 0)]
    axes[1].hist(sides, bins=20, range=(0, 1), stacked=True, color=(REJECTED, "0.75", CHOSEN),
                 label=("favours the start", "neither", "favours DPO"))
    axes[1].set(title=f"{len(heads)} untrained heads: the side they take is luck", ylabel="heads",
                xlabel="share of prompts DPO wins against its start", ylim=(0, 1.5 * axes[1].get_ylim()[1]))
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    for ax in axes:
        ax.axvline(0.5, color="0.7", lw=1, zorder=0)
        ax.set_xlim(0, 1)
        ax.set_title(ax.get_title(), fontsize=10)
    fig.suptitle("Left and right: a point per seed and its 95 % interval; beyond the noise if that leaves out 1/2")
    save(fig, Path(out) / "findings" / "two_by_two.png")


def main(argv=None) -> None:
    """Train what is missing, judge, print the tables, draw the figure."""
    p = options(__doc__)
    p.add_argument("--prompts", type=positive, default=200, metavar="N", help="test prompts to answer (default: 200)")
    args = p.parse_args(argv)
    folders = runs(args)
    torch.set_num_threads(args.jobs)
    by_seed = [judge(folders, s, args.prompts) for s in tqdm(range(args.seeds), "judging")]
    firsts = {name: [seed[0][name] for seed in by_seed] for name in by_seed[0][0]}
    heads = [told for seed in by_seed for told in seed[1]]
    groups = {name: [[seed[2][name][two] for seed in by_seed] for two in AGAINST] for name in by_seed[0][2]}

    print(f"Share of {args.prompts} prompts won, a tie is half a win; difference in sd of that judge's own scores; "
          f"mean ± standard deviation over {args.seeds} seeds.\n")
    heading = ["judge", "DPO beats its start", "difference"]
    print(aligned([heading, *(row(name, seeds) for name, seeds in firsts.items())], ">22"))
    print(favour("trained reward model", firsts["trained"], 0, ("DPO", "its start")))
    print(favour("untrained head", firsts["untrained"], 1, ("DPO", "its start")))
    counts = [sum(told["favours"] == side for told in heads) for side in (0, 1, None)]
    print("Of {} untrained heads {} favour DPO beyond the noise, {} its start, {} neither: no preference, but the luck "
          "of the draw.\n".format(len(heads), *counts))
    heading = ["judge", *(f"{a} beats {b}" for a, b in AGAINST), "last difference"]
    print(aligned([heading, *(row(name, *comparisons) for name, comparisons in groups.items())], ">22"))
    for name, comparisons in groups.items():
        print(favour(name, comparisons[-1], GROUPS.index(name.split()[0]), [f"the {group} policy" for group in GROUPS]))
    figure(firsts, heads, {name: comparisons[-1] for name, comparisons in groups.items()}, args.out)


if __name__ == "__main__":
    exit_on_user_error(main)
