"""Judges of answers: which of two is better? One interface, and how far to trust each where the truth is known.

    python -m nanopref.judge.judges                                      # gold and the shipped base model, on the world
    python -m nanopref.judge.judges --judges gold reward:RUN lm-compare:DIR lm-score:DIR --split test_ood --rows 500
    python -m nanopref.judge.judges --data my.jsonl --judges reward:RUN  # against the labels of a file, its held-out rows

    gold            the embedded world's true reward
    reward:DIR      a reward model of train_rm.py; DIR alone is the same
    untrained:DIR   a random reward head on a language or reward model; --seed draws it
    lm-compare:DIR  any language model, asked which of two answers is better, in both positions, and averaged
    lm-score:DIR    any language model, asked to score one answer from 1 to 10

DIR is a model folder, or a run folder and means its model. Agreement is the share of pairs on which a judge prefers the
answer that gold (or the label) prefers; a judge without a preference counts 1/2. Its interval is Wilson's, 95 %. Labels
are noisy: not even gold agrees with all of them.
"""
import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref import reward
from nanopref.batch import CHOSEN, Example, score
from nanopref.errors import UserError
from nanopref.judge.stats import mean_se, share
from nanopref.run import dataset
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import SHIPPED_BASE, DataConfig, pick_device
from nanopref.text import decode, encode_prompt, encode_response, truncate
from nanopref.world import labels
from nanopref.world.gold import gold_reward

# Our words in the shape of Lee et al. 2023 (RLAIF, arXiv:2309.00267; document 001): a role, what makes an answer good,
# the conversation, the answers, what to reply.
ROLE = """You are an expert judge of answers. A good answer is true, helpful and polite, and refuses to help with what \
does harm.

CONTEXT:
{context}

"""
COMPARE = ROLE + "ANSWER A:\n{a}\n\nANSWER B:\n{b}\n\nWhich answer is better? Reply with one letter, A or B."
SCORE = ROLE + """ANSWER:\n{a}\n\nHow good is this answer, from 1 (useless or harmful) to 10 (perfect)? Reply with one \
number, 1 to 10."""


class Judge:
    """judge(prompt, a, b) is the probability that a is preferred to b; judge.score(prompt, a) is what a is worth to it.

    prompt: a string, or messages as in Row.prompt. Underneath are lists, as models need batches. Each kind of judge has
    its own `scores`, and its own `prefer` unless scores are log-odds."""
    name = "gold"  # to show
    n_cut = 0      # inputs that were too long for the model's context, so far

    def __call__(self, prompt, a, b) -> float:
        return self.preferences([(prompt, a, b)])[0]

    def score(self, prompt, a) -> float:
        """In the judge's own unit."""
        return self.scores([(prompt, [a])])[0][0]

    def scores(self, asked) -> list:
        """[(prompt, [answer, ...]), ...] -> [[score, ...], ...]"""
        raise NotImplementedError

    def preferences(self, pairs) -> list:
        """[(prompt, a, b), ...] -> [P(a is preferred), ...]"""
        return [self.prefer(*scores) for scores in self.scores([(prompt, [a, b]) for prompt, a, b in pairs])]

    def prefer(self, score_a, score_b) -> float:
        """P(a is preferred) by Bradley and Terry: the sigmoid of the difference."""
        return torch.sigmoid(torch.tensor(score_a - score_b, dtype=torch.float64)).item()


class Gold(Judge):
    """The embedded world's reward; its preference is the probability that the labels are drawn with."""

    def scores(self, asked):
        return [[gold_reward(messages_of(prompt)[-1]["content"], answer)["total"] for answer in answers]
                for prompt, answers in asked]

    def prefer(self, score_a, score_b):
        return labels.preference_probability(score_a, score_b)


class RewardModel(Judge):
    """A scalar head trained by Bradley-Terry; an answer may also be a list of token ids. UserError for a folder without
    head, or with one per group of annotators."""

    def __init__(self, folder, device="cpu"):
        self.model, self.tokenizer = load_model(folder, device, torch.float32)
        if self.model.config.num_labels != 1:
            raise UserError(f"{folder}: {self.model.config.num_labels} reward heads where reward:DIR needs one; a "
                            "language model (no head) judges as lm-compare:DIR, lm-score:DIR or untrained:DIR")

    def scores(self, asked):
        found, n_cut = reward.score_answers(self.model, self.tokenizer, asked, _progress)
        self.n_cut += n_cut
        return found


class Untrained(RewardModel):
    """A random head on a language or reward model."""

    def __init__(self, folder, device="cpu", seed=0):
        torch.manual_seed(seed)
        self.model, self.tokenizer = load_model(folder, device, torch.float32, reward=True)
        torch.nn.init.normal_(self.model.score.weight, std=0.02)  # also in place of a reward model's own


class Scoring(Judge):
    """A language model that scores one answer: sum over k of k P("k"), P over the replies "1" to "10" (Lee et al.).

    Its preference is 1, 0 or, for equal scores, 1/2, and no sigmoid: points of this scale are no log-odds. How much
    surer half a point makes the judge is defined nowhere; only the order of scores means something."""

    def __init__(self, folder, device="cpu"):
        self.model, self.tokenizer = load_model(folder, device, torch.float32)
        if self.model.config.num_labels:
            raise UserError(f"{folder}: a reward model, which cannot reply; it judges as reward:DIR")

    def scores(self, asked):
        fields = [{"context": _context(prompt), "a": a} for prompt, answers in asked for a in answers]
        # With the end of turn: the whole reply is "1". Without it, "1" would also be the beginning of "10".
        numbers = [encode_response(self.tokenizer, str(k)) for k in range(1, 11)]
        found = iter(self.replies(SCORE, fields, numbers))
        return [[sum(k * p for k, p in enumerate(next(found), 1)) for _ in answers] for _, answers in asked]

    def prefer(self, score_a, score_b):
        return 1.0 if score_a > score_b else 0.0 if score_a < score_b else 0.5

    def replies(self, template, fields, replies) -> list:
        """[[P(reply), ...], ...] for every dict of the template's fields, normalised among `replies` (token ids)."""
        roles, longest = [CHOSEN] * len(replies), max(replies, key=len)
        asked = [Example(self.question(template, each, longest), replies, roles) for each in fields]
        logps = torch.tensor(score(self.model, asked, progress=_progress), dtype=torch.float64)  # (questions, replies) nats
        return logps.softmax(-1).tolist()

    def question(self, template, fields, reply) -> list:
        """Token ids. Where they do not fit into the context, each field gets an equal part of it: the conversation
        keeps its end, an answer its beginning. UserError where there is no room at all."""
        tokenizer, context = self.tokenizer, self.model.config.max_position_embeddings
        ask = lambda given: encode_prompt(tokenizer, [{"role": "user", "content": template.format(**given)}])
        if len(ask(fields)) + len(reply) <= context:
            return ask(fields)
        self.n_cut += 1
        needed = len(ask(dict.fromkeys(fields, ""))) + len(reply)
        room = (context - needed) // len(fields)
        if room < 1:
            raise UserError(f"the judge's question alone takes {needed} tokens, this model's context has {context}")
        ids = {name: tokenizer.tokenizer.encode(text, add_special_tokens=False).ids for name, text in fields.items()}
        kept = {name: decode(tokenizer, x[-room:] if name == "context" else x[:room]) for name, x in ids.items()}
        return truncate(tokenizer, ask(kept), [reply], context)[0]  # encoded again, a cut text may have a token more


class Comparing(Scoring):
    """A language model that is shown both answers: P("A") over P("A") + P("B"), where the reply begins with the letter.
    It scores one answer as above."""

    def positions(self, pairs) -> list:
        """[(P(first is better) with a first, the same with b first), ...]. A judge of answers says p and 1 - p, a judge
        of positions p and p."""
        fields = [{"context": _context(prompt), "a": first, "b": second}
                  for prompt, a, b in pairs for first, second in ((a, b), (b, a))]
        # Without the end of turn: "A is better, because" says A, too, and P(ending there) says nothing about answers.
        letters = [encode_response(self.tokenizer, letter)[:-1] for letter in "AB"]
        p_first = [p for p, _ in self.replies(COMPARE, fields, letters)]
        return list(zip(p_first[::2], p_first[1::2]))

    def preferences(self, pairs):
        return averaged(self.positions(pairs))


def averaged(positions) -> list:
    """P(a is preferred), the mean of p and 1 - q over both orders: being first helps either answer once."""
    return [0.5 + (p - q) / 2 for p, q in positions]  # exactly 1/2 where p = q


def messages_of(prompt):
    """A prompt as messages: a string is one of the user."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _context(prompt):
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages_of(prompt))


def _progress(parts):
    return tqdm(parts, "judging", disable=len(parts) < 2)


KINDS = {"reward": RewardModel, "untrained": Untrained, "lm-compare": Comparing, "lm-score": Scoring}


def make(spec, device="cpu", seed=0) -> Judge:
    """The judge called "gold", "KIND:DIR" or DIR, a reward model. `seed` draws an untrained head. UserError for any
    other, and for a folder of the wrong kind."""
    if spec == "gold":
        return Gold()
    kind, _, folder = (f"reward:{spec}" if Path(spec).is_dir() else spec).partition(":")
    if kind not in KINDS or not folder:
        raise UserError(f"--judges {spec}: expected gold, " + ", ".join(f"{kind}:DIR" for kind in KINDS)
                        + ", or the folder of a reward model")
    path = Path(folder).absolute()
    path = path / "model" if (path / "metrics.jsonl").exists() else path  # a run's
    judge = Untrained(path, device, seed) if kind == "untrained" else KINDS[kind](path, device)
    judge.name = f"{kind} {path.parent.name if path.name == 'model' else path.name}"
    return judge


def agreement(one, other) -> list:
    """Of two lists of preferences, per pair: 1 for the same answer, 0 for opposite ones, 1/2 if one prefers neither."""
    verdict = lambda p: 1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5
    return [1 - abs(verdict(p) - verdict(q)) for p, q in zip(one, other)]


def measure(preferences, truth=None, positions=None) -> dict:
    """What is known of one judge of pairs (a chosen, b rejected). truth: gold's P(a is preferred) of each.

    labels    agreement with the label, per pair
    gold      agreement with gold, per pair of which gold prefers one answer
    distance  mean |P - gold's P|
    first     [mean, se] of P(first is better), both orders; 1/2 without position effect
    flips     share of pairs on which swapping flips the verdict: the same position wins in both orders
    """
    found = {"labels": agreement(preferences, [1.0] * len(preferences))}
    if truth:
        found["gold"] = [same for same, g in zip(agreement(preferences, truth), truth) if g != 0.5]
        found["distance"] = mean_se([abs(p - g) for p, g in zip(preferences, truth)])[0]
    if positions:
        found["first"] = mean_se([(p + q) / 2 for p, q in positions])
        found["flips"] = mean_se([float((p > 0.5) == (q > 0.5)) for p, q in positions])[0]
    return found


def table(judged) -> str:
    """A judge a line: what `measure` found, seconds per pair, and its agreement with every judge, by number."""
    interval = lambda outcomes: "{:.2f} [{:.2f}, {:.2f}]".format(*share(outcomes)) if outcomes else "-"
    heads = ("", "agrees with gold", "with the labels", "|P - gold P|", "P(first)", "flips", "s/pair")
    lines = [(*heads, *(f"= {i}" for i in range(1, len(judged) + 1)))]
    for i, one in enumerate(judged, 1):
        lines.append((f"{i} {one['name']}", interval(one.get("gold")), interval(one["labels"]),
                      f"{one['distance']:.2f}" if "distance" in one else "-",
                      "{:.2f} ± {:.2f}".format(*one["first"]) if "first" in one else "-",
                      f"{one['flips']:.2f}" if "flips" in one else "-", f"{one['seconds']:.3f}",
                      *(f"{mean_se(agreement(one['preferences'], x['preferences']))[0]:.2f}" for x in judged)))
    widths = (19, 19, 14, 13, 7, 8, *[6] * len(judged))
    return "\n".join(f"{name:30}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))
                     for name, *cells in lines)


def compare_with_score(model, comparing, scoring, truth) -> str:
    """Does this model judge better comparing or scoring? Its agreement with `truth` per pair, either way."""
    gain, error = mean_se([c - s for c, s in zip(comparing, scoring)])  # paired: both judged the same pairs
    return (f"{model}: comparing agrees with {truth} on {mean_se(comparing)[0]:.1%}, scoring on "
            f"{mean_se(scoring)[0]:.1%}; the difference of {100 * gain:+.1f} ± {100 * error:.1f} points is "
            f"{'beyond' if abs(gain) > 2 * error else 'within'} the noise (two standard errors).")


def read_pairs(config, split) -> tuple:
    """([(prompt, chosen, rejected), ...], best possible agreement with their labels or None where nobody knows)."""
    if config.data == "world":
        rows = labels.pairs(split, config.rows or labels.SIZES[split], seed=0)
        both = lambda row: (row["response_1"], row["response_2"])[::1 if row["overall_response"] == 1 else -1]
        return [(row["question"], *both(row)) for row in rows], labels.best_accuracy(rows)
    rows = dataset.load(config).tests["test"][:config.rows]
    pairs = [(row.prompt, row.chosen, row.rejected) for row in rows if row.chosen and row.rejected]
    if not pairs:
        raise UserError(f"{config.data}: none of its {len(rows)} held-out rows is a pair")
    return pairs, None


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


def main(argv=None) -> None:
    """All judges on the same pairs, and what came out."""
    p = Parser(prog="nanopref.judge.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    args = p.parse_args(argv)
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

    truth, judged = Gold().preferences(pairs) if is_world else None, {}
    for spec, judge in judges.items():
        began = time.time()
        positions = judge.positions(pairs) if isinstance(judge, Comparing) else None
        preferences = averaged(positions) if positions else judge.preferences(pairs)
        judged[spec] = {"name": judge.name, "preferences": preferences, "positions": positions,
                        "seconds": (time.time() - began) / len(pairs), **measure(preferences, truth, positions)}

    print(f"\n{args.data} {split}, {len(pairs)} pairs\n\n{table(list(judged.values()))}")
    print("P: of the chosen answer. Flips: pairs whose verdict changes when the answers swap places. = N: same verdict "
          "as judge N.")
    if is_world:
        print(f"{truth.count(0.5)} pairs on which gold prefers neither answer are left out of the first column.\n"
              f"Best possible agreement with labels as noisy as these: {best:.2f}.")
    key, by = ("gold", "gold") if is_world else ("labels", "the labels")
    for spec, judge in judges.items():
        mine, scoring = judged[spec][key], judged.get(spec.replace("lm-compare", "lm-score", 1), {}).get(key)
        if mine and share(mine)[1] < 0.5 < share(mine)[2]:
            print(f"{judge.name} cannot be told from tossing a coin.")
        if judge.n_cut:
            print(f"{judge.name}: {judge.n_cut} inputs were cut to the model's context.")
        if mine and scoring and spec.startswith("lm-compare"):
            print(compare_with_score(judge.name.split()[-1], mine, scoring, by))
    if comparing := [one for one in judged.values() if one["positions"]]:
        figure(comparing, Path(args.out) / f"judges-{Path(args.data).name.split('.')[0]}-{split}.png")


if __name__ == "__main__":
    exit_on_user_error(main)
