"""A preference dataset in numbers: counts and shares, the words of each side, a map of hidden states. What
nanopref/judge/look.py says of them in words."""
import math
import random
import re
import statistics
from collections import Counter
from dataclasses import replace

import torch
from tqdm import tqdm

from nanopref.batch import collate
from nanopref.data.examples import encode
from nanopref.judge.stats import outcomes, share
from nanopref.logps import at_least_float32
from nanopref.text import encode_response

MAPPED, MAX_LENGTH = 1000, 512  # rows in the map, a seeded sample; tokens of prompt + response there
RARE = 5                        # of a word in fewer responses z is no normal variable


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


def longer(chosen, rejected, clusters=None) -> tuple[float, float, float]:
    """The `share` of pairs whose chosen response is the longer one, of two lists of lengths; equal ones count half."""
    return share(outcomes(chosen, rejected), clusters)


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
    z, alpha_0 = {}, len(words)
    for word in words:
        alpha = alpha_0 * (first[word] + second[word]) / (n1 + n2)
        y1, y2 = first[word] + alpha, second[word] + alpha
        delta = math.log(y1 / (n1 + alpha_0 - y1)) - math.log(y2 / (n2 + alpha_0 - y2))
        z[word] = delta / math.sqrt(1 / y1 + 1 / y2)
    return z


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
    half_of, right = {name: i % 2 for i, name in enumerate(names)}, torch.empty(len(prompts))
    half = torch.tensor([half_of[prompt] for prompt in prompts])  # (N,)
    if len(names) < 2:
        return []
    for k in (0, 1):
        fitted, held_out = differences[half != k], differences[half == k]
        scale = fitted.square().mean(0).sqrt().clamp_min(1e-8)  # (d,)
        x = fitted / scale
        w = torch.linalg.solve(x.T @ x + len(x) * torch.eye(x.shape[1]), x.sum(0))  # (d,)
        right[half == k] = (held_out / scale @ w).sign() / 2 + 0.5
    return right.tolist()


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
    drawn = {"raw": pca(states), "about": [f"{len(examples):,} rows", *(f"{n} {what}" for what, n in cut.items())]}
    if not is_paired:
        return {**drawn, "chosen": torch.tensor([e.row.rejected is None for e in examples])}
    half = (states[::2] - states[1::2]) / 2  # the two of a pair lie side by side
    prompts = [e.row.key for e in examples]
    told_apart = separable(half, prompts)
    return {**drawn, "chosen": torch.arange(len(states)) % 2 == 0,
            "within": pca(torch.stack([half, -half], 1).flatten(0, 1)),
            "apart": share(told_apart, prompts) if told_apart else None,
            "longer": longer(*zip(*[map(len, e.responses) for e in examples]), prompts)}


# 4. All of it.
def examine(rows, kind, model, tokenizer) -> dict:
    """Everything that is printed and drawn, of rows that are all "pairs", "unpaired" or "demonstrations". Of a ranking
    the best and the worst response are a pair; those `between` are only counted. Intervals are clustered by prompt."""
    prompts = [row.key for row in rows]
    sides = [[text for row in rows if (text := getattr(row, side)) is not None] for side in ("chosen", "rejected")]
    data_set = {"kind": kind, "n": len(rows), "counts": counts(rows), "shares": {}, "map": {}, "markers": {"z": {}},
             "between": sum(len(row.between) for row in rows),
             "words": [[len(text.split()) for text in side] for side in sides],
             "tokens": [[len(encode_response(tokenizer, text)) for text in tqdm(side, "tokens", leave=False)]
                        for side in sides],
             "gaps": [row.scores[0] - row.scores[-1] for row in rows if row.scores]}
    if kind == "pairs":
        data_set["shares"] = {f"longer is chosen ({unit})": longer(*data_set[unit], prompts)
                              for unit in ("words", "tokens")}
        if ordered := [row for row in rows if row.preferred]:
            data_set["shares"]["first is chosen"] = share([float(row.preferred == 1) for row in ordered],
                                                          [row.key for row in ordered])
    if kind == "unpaired":
        data_set["shares"]["labels are true"] = share([float(row.rejected is None) for row in rows], prompts)
    if kind != "demonstrations":
        data_set["markers"], data_set["map"] = markers(rows), hidden_map(rows, model, tokenizer)
        if data_set["map"].get("apart"):
            data_set["shares"]["a plane tells them apart"] = data_set["map"]["apart"]
    return data_set
