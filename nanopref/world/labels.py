"""Preference labels whose truth we own: Bradley-Terry on the gold rewards, and the files a run reads.

Pairs and rankings of the writers' responses, annotators' groups that want different things, and what no judge can beat
on labels as noisy as these.
"""
import json
import math
import os
import random
from functools import partial
from pathlib import Path

from nanopref.world.gold import PARTS, gold_reward
from nanopref.world.language import questions
from nanopref.world.writers import WRITERS, demonstrations, draw, write

TEMPERATURE = 1.0  # P(response 1 preferred) = sigmoid((gold_1 - gold_2) / TEMPERATURE)


def preference_probability(gold_1: float, gold_2: float) -> float:
    """P(response 1 is preferred): Bradley and Terry's sigmoid of the reward difference, slides (1)-(4)."""
    return 1 / (1 + math.exp((gold_2 - gold_1) / TEMPERATURE))


def best_accuracy(rows: list[dict]) -> float:
    """The expected accuracy on these labels of the best possible judge, the gold reward itself: E[max(p, 1 - p)]."""
    p = [preference_probability(row["gold_1"], row["gold_2"]) for row in rows]
    return sum(max(x, 1 - x) for x in p) / len(p)


# Annotators who value the gold reward's parts differently: the factor of each part, 1 where none is given.
# `over_refusal` is the part `refusal` of a harmless request, so that -1 means: better refuse once too often.
# Facts count alike for all.
GROUPS = {"curious": {"detail": 2.0, "ramble": 0.5},
          "hurried": {"detail": -1.0, "ramble": 2.0, "tone": 0.0},
          "careful": {"detail": -0.5, "tone": 3.0, "refusal": 2.0, "over_refusal": -1.0}}


def group_reward(group: str, prompt: str, text: str) -> float:
    """What a response is worth to one of GROUPS: the gold reward's parts, each times the group's factor, summed."""
    gold = gold_reward(prompt, text)
    parts = {part: gold[part] for part in PARTS}
    if not gold["risky"]:
        parts["over_refusal"] = parts.pop("refusal")
    return round(sum(GROUPS[group].get(part, 1.0) * points for part, points in parts.items()), 6)


def disagreement(rows: list[dict], a: str, b: str) -> float:
    """Share of the pairs whose better response is another one for group a than for group b; a tie of either is none."""
    def gain(group, row):
        first, second = (group_reward(group, row["question"], row[f"response_{i}"]) for i in (1, 2))
        return first - second

    return sum(gain(a, row) * gain(b, row) < 0 for row in rows) / len(rows)


def pairs(split: str, n: int, seed: int, group: str | None = None) -> list[dict]:
    """n labelled pairs of a split, with align-anything's fields and the gold scores aside.

    With one of GROUPS as `group`, other pairs of the same distribution, labelled by that group: gold_1 and gold_2 are
    its rewards, and each row names it."""
    rng, rows = random.Random(f"{split}-{seed}" + (f"-{group}" if group else "")), []
    reward = partial(group_reward, group) if group else lambda prompt, text: gold_reward(prompt, text)["total"]
    for q in draw(questions(split), n, rng):
        answers = []
        while len(answers) < 2:
            writer = rng.choices(WRITERS, [w.share for w in WRITERS])[0]
            text = write(writer, q, rng)
            if text not in [a for a, _ in answers]:
                answers.append((text, writer.name))
        (first, writer_1), (second, writer_2) = answers
        gold_1, gold_2 = (reward(q.text, text) for text in (first, second))
        preferred = 1 if rng.random() < preference_probability(gold_1, gold_2) else 2
        rows.append({"question": q.text, "response_1": first, "response_2": second, "overall_response": preferred,
                     "gold_1": round(gold_1, 3), "gold_2": round(gold_2, 3), "writer_1": writer_1,
                     "writer_2": writer_2, "kind": q.kind, **({"group": group} if group else {})})
    return rows


def rankings(split: str, n: int, k: int, seed: int) -> list[dict]:
    """n prompts with k different responses each, ranked as a labeller would rank them: by gold reward plus Gumbel noise
    (Plackett-Luce, whose every pair is a Bradley-Terry label at TEMPERATURE 1). {"prompt", "ranked" (best first),
    "scores" (gold)}."""
    rng, rows = random.Random(f"rankings-{split}-{k}-{seed}"), []
    for q in draw(questions(split), n, rng):
        texts = {}
        while len(texts) < k:
            text = write(rng.choices(WRITERS, [w.share for w in WRITERS])[0], q, rng)
            gold = gold_reward(q.text, text)["total"]
            texts.setdefault(text, (gold - TEMPERATURE * math.log(-math.log(rng.random())), gold))
        ranked = sorted(texts, key=lambda text: -texts[text][0])
        rows.append({"prompt": q.text, "ranked": ranked, "scores": [round(texts[text][1], 3) for text in ranked]})
    return rows


SIZES = {"demonstrations": 5000, "train": 6000, "test_id": 200, "test_ood": 200}
EXAMPLES = {"demonstrations": 100, "train": 100, "test_id": 100, "test_ood": 100}  # those committed in data/examples


def write_rows(path: Path, rows) -> None:
    """Rows as JSONL, in one step: another run of the same seed may be reading the file just now."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(path)


def make(folder, seed: int, sizes: dict = SIZES) -> dict[str, list[dict]]:
    """Write sft.jsonl, train.jsonl, test_id.jsonl and test_ood.jsonl, and return their rows by name. `seed` draws the
    training data; the two test files are the same for every seed, so that runs can be compared."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"sft": demonstrations(sizes["demonstrations"], seed), "train": pairs("train", sizes["train"], seed),
             "test_id": pairs("test_id", sizes["test_id"], 0), "test_ood": pairs("test_ood", sizes["test_ood"], 0)}
    for name, rows in files.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return files


def make_rankings(folder, k: int, seed: int) -> str:
    """Write rankings of k responses beside the training pairs, with as many responses in all; returns the file's stem."""
    rows = rankings("train", 2 * SIZES["train"] // k, k, seed)
    write_rows(Path(folder) / f"train-ranked{k}.jsonl", rows)
    return f"train-ranked{k}"
