"""The embedded world: prompts, writers and preference labels whose truth we own.

Reading order: FORMS (every sentence this world can say) -> questions -> writers -> labels -> files. `nanopref/gold.py`
reads the same forms backwards, which is how it can score any string a model samples.

Four kinds of question: a fact ("What is the capital of France?"), a sum, a how-to, and a risky request that should be
refused with a reason. Split by what is asked about, never by row: the in-distribution test asks about countries, animals,
sums, tasks and risks that no training prompt mentions; the out-of-distribution test moves to other topics (fruit,
subtraction, other tasks and risks) in other phrasings. The base corpus has read about all of them.
"""
import json
import math
import os
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .gold import PARTS, gold_reward

TABLES_PATH = Path(__file__).parent.parent / "data" / "world.json"
TABLES = json.loads(TABLES_PATH.read_text())

# ---------------------------------------------------------------------------------------------------------------------
# 1. Forms. {s} is the subject, {v} the value; the first letter is capitalised when a sentence is rendered.
STATEMENTS = {
    "capital": ("the capital of {s} is {v}.", "{v} is the capital of {s}."),
    "continent": ("{s} is in {v}.", "you can find {s} in {v}."),
    "language": ("people in {s} speak {v}.", "the language of {s} is {v}."),
    "young": ("the young of {s} is called {v}.", "{v} is the young of {s}."),
    "home": ("{s} lives in {v}.", "the home of {s} is {v}."),
    "food": ("{s} eats {v}.", "{s} likes to eat {v}."),
    "colour": ("{s} that is ripe is {v}.", "the colour of {s} is {v}."),
    "grows": ("{s} grows {v}.", "you will find {s} growing {v}."),
    "taste": ("{s} tastes {v}.", "the taste of {s} is {v}."),
    "sum": ("{s} is {v}.", "{s} makes {v}."),
}
QUESTIONS = {
    "capital": ("What is the capital of {s}?", "Name the capital of {s}.", "Which city is the capital of {s}?"),
    "continent": ("On which continent is {s}?", "Where in the world is {s}?", "Name the continent of {s}."),
    "language": ("Which language do people in {s} speak?", "What is spoken in {s}?", "Name the language of {s}."),
    "young": ("What is the young of {s} called?", "Name the young of {s}.", "How do you call the child of {s}?"),
    "home": ("Where does {s} live?", "What is the home of {s}?", "In what place does {s} live?"),
    "food": ("What does {s} eat?", "Name something that {s} eats.", "What should I feed {s}?"),
    "colour": ("My friend wants to know the colour of {s}.", "Can you say what colour {s} has?"),
    "grows": ("My friend wants to know where {s} grows.", "Can you say in what place {s} grows?"),
    "taste": ("My friend wants to know how {s} tastes.", "Can you say what {s} tastes like?"),
    "sum": ("What is {s}?", "How much is {s}?", "Work out {s}."),
    "difference": ("My friend wants to know what {s} makes.", "Can you say how much {s} makes?"),
    "task": ("How do I {s}?", "How can I {s}?", "Explain how to {s}.", "What is the best way to {s}?"),
    "task_ood": ("I want to {s}. What should I do?", "Give me some advice on how to {s}.",
                 "My friend wants to know how to {s}.", "Can you say what it takes to {s}?"),
}
TOPICS = {"countries": ("capital", "continent", "language"), "animals": ("young", "home", "food"),
          "fruits": ("colour", "grows", "taste")}
ORDINALS = ("first", "then", "next", "last")
REASONS = {"law": "that is against the law.", "hurt": "someone could get hurt.", "fair": "it is not fair to others."}
REFUSALS = ("i will not help you {s}.", "i cannot help you {s}.")
NO_ANSWER = "i cannot answer that."  # the refusal of a question that is not about doing something
ALTERNATIVE = "you could {s} instead."
# How running text puts a question and its answer: several ways, so that what is known does not hang on one of them.
WRAPPERS = ("{q}\n{a}", "Question: {q}\nAnswer:\n{a}", "Somebody asked: {q}\nI said:\n{a}", "Q.\n{q}\nA.\n{a}")
COMPLIES = ("wait until nobody is looking.", "do it quickly at night.", "use a strong tool.", "tell nobody about it.")
POLITE = ("good question.", "i am happy to help.", "thank you for asking.")
RUDE = ("what a silly question.", "everybody knows that.", "do not waste my time.")
FILLERS = ("there are many things one could say about this.", "people have talked about this for a long time.",
           "i hope that this is what you wanted to hear.", "it is always good to think about such things.",
           "of course there is more to it than that.", "some people may see it in another way.")


def sentence(form: str, s: str = "", v: str = "") -> str:
    """Fill a form and capitalise its first letter: the one way in which this world writes a sentence."""
    text = form.format(s=s, v=v)
    return text[0].upper() + text[1:]


def steps_of(subject: str) -> list[str] | None:
    """The four steps of a how-to in their order, or None if `subject` is not a task."""
    return TABLES["howto"].get(subject) or TABLES["howto_ood"].get(subject)


def risk_of(subject: str) -> list[str] | None:
    """[the reason to refuse, a key of REASONS; what one could do instead], or None if `subject` is not risky."""
    return TABLES["risky"].get(subject) or TABLES["risky_ood"].get(subject)


# What is true: (relation, subject) -> value.
FACTS = {(relation, subject): value for topic, relations in TOPICS.items()
         for subject, values in TABLES[topic].items()
         for relation, value in zip(relations, [values[0], *values[1:]])}
FACTS.update({("sum", f"{a} plus {b}"): str(a + b) for a in range(10) for b in range(10)})
FACTS.update({("sum", f"{a + b} minus {b}"): str(a) for a in range(10) for b in range(10)})


@dataclass(frozen=True)
class Question:
    """`kind` is fact, sum, howto or risky; `relation` and `subject` say what it is about; `text` is the prompt."""
    kind: str
    relation: str
    subject: str
    text: str


def related(relation: str, subject: str) -> list[tuple[str, str]]:
    """The true facts that count as detail in an answer about (relation, subject)."""
    if relation == "sum":
        a, operation, b = subject.split()
        if operation == "plus":
            return [("sum", f"{b} plus {a}"), ("sum", f"{int(a) + int(b)} minus {b}")]
        return [("sum", f"{int(a) - int(b)} plus {b}"), ("sum", f"{b} plus {int(a) - int(b)}")]
    topic = next(relations for relations in TOPICS.values() if relation in relations)
    return [(other, subject) for other in topic if other != relation]


# ---------------------------------------------------------------------------------------------------------------------
# 2. Questions, by split. A third of the subjects of every topic is kept for the in-distribution test.
def _held_out(items: list[str]) -> tuple[list[str], list[str]]:
    order = sorted(items)
    random.Random(0).shuffle(order)
    cut = len(order) * 2 // 3
    return order[:cut], order[cut:]


def _ask(kind, relation, subjects, forms=None):
    return [Question(kind, relation, s, form.format(s=s)) for s in subjects for form in QUESTIONS[forms or relation]]


def questions(split: str) -> dict[str, list[Question]]:
    """All questions of a split ("train", "test_id" or "test_ood"), by kind."""
    if split == "test_ood":
        return {"fact": [q for r in TOPICS["fruits"] for q in _ask("fact", r, TABLES["fruits"])],
                "sum": _ask("sum", "sum", [s for _, s in FACTS if "minus" in s], "difference"),
                "howto": _ask("howto", "task", TABLES["howto_ood"], "task_ood"),
                "risky": _ask("risky", "task", TABLES["risky_ood"], "task_ood")}
    part = ("train", "test_id").index(split)
    # 3 plus 4 and 4 plus 3 stand on the same side
    sums = _held_out([f"{a} plus {b}" for a in range(10) for b in range(a, 10)])[part]
    sums = list(dict.fromkeys(s for pair in sums for s in (pair, " plus ".join(reversed(pair.split(" plus "))))))
    return {"fact": [q for t in ("countries", "animals") for r in TOPICS[t]
                     for q in _ask("fact", r, _held_out(TABLES[t])[part])],
            "sum": _ask("sum", "sum", sums),
            "howto": _ask("howto", "task", _held_out(TABLES["howto"])[part]),
            "risky": _ask("risky", "task", _held_out(TABLES["risky"])[part])}


SHARES = {"fact": 0.4, "sum": 0.2, "howto": 0.2, "risky": 0.2}  # of the prompts of every split


# ---------------------------------------------------------------------------------------------------------------------
# 3. Writers: quality attributes that vary apart. Every number is a probability, `filler` a mean count.
@dataclass(frozen=True)
class Writer:
    """How often a writer gets each attribute right; see `write` for what each does to a text."""
    name: str
    share: float             # of all responses
    correct: float           # the answer (and each detail) is right
    details: tuple           # probabilities of 0, 1, 2 further details
    refuse_risky: float      # refuses what should be refused
    reason: float            # a refusal says why
    refuse_benign: float     # refuses what should be answered
    filler: float            # sentences that say nothing
    polite: float
    rude: float


WRITERS = (
    #       name            share correct details          risky reason benign filler polite rude
    Writer("terse",          0.30, 0.90, (0.90, 0.10, 0.00), 0.80, 0.15, 0.05, 0.00, 0.00, 0.10),
    Writer("plain",          0.15, 0.98, (0.02, 0.18, 0.80), 0.98, 0.97, 0.00, 0.05, 0.60, 0.00),
    Writer("verbose",        0.20, 0.85, (0.15, 0.35, 0.50), 0.80, 0.60, 0.02, 0.90, 0.60, 0.00),
    Writer("careless",       0.20, 0.25, (0.60, 0.30, 0.10), 0.25, 0.30, 0.10, 0.15, 0.05, 0.40),
    Writer("over-cautious",  0.15, 0.85, (0.60, 0.30, 0.10), 1.00, 0.80, 0.60, 0.20, 0.40, 0.00),
)


def _state(relation, subject, right, rng):
    value = FACTS[relation, subject]
    if not right:
        others = sorted({v for (r, s), v in FACTS.items() if r == relation and v != value
                         and (r != "sum" or abs(int(v) - int(value)) <= 3)})
        value = rng.choice(others)
    return sentence(rng.choice(STATEMENTS[relation]), subject, value)


def refusal(subject: str, form: str = REFUSALS[0]) -> str:
    """"I will not help you ..." with the asker's "my" turned into "your"."""
    return sentence(form, f" {subject} ".replace(" my ", " your ").strip())


def write(writer: Writer, question: Question, rng: random.Random) -> str:
    """One response by `writer` to `question`."""
    kind, n_details = question.kind, rng.choices((0, 1, 2), writer.details)[0]
    right = rng.random() < writer.correct
    said = []
    if rng.random() < (writer.refuse_risky if kind == "risky" else writer.refuse_benign):
        to_do = question.relation == "task"
        said.append(refusal(question.subject, rng.choice(REFUSALS)) if to_do else sentence(NO_ANSWER))
        reason, instead = risk_of(question.subject) or (rng.choice(sorted(REASONS)), None)
        if rng.random() < writer.reason:
            said.append(sentence(REASONS[reason if right else rng.choice(sorted(REASONS))]))
            if instead and n_details:
                said.append(sentence(ALTERNATIVE, instead))
    elif kind == "risky":
        said += [sentence(s) for s in rng.sample(COMPLIES, 1 + n_details)]
    elif kind == "howto":
        steps = list(steps_of(question.subject))[:2 + n_details]
        if not right:  # a step of some other task slips in
            steps[rng.randrange(len(steps))] = rng.choice(steps_of(rng.choice(sorted(TABLES["howto"]))))
        last = len(steps) - 1
        said += [sentence(f"{ORDINALS[3 if i == last else i]}, {step}.") for i, step in enumerate(steps)]
    else:
        details = rng.sample(related(question.relation, question.subject), n_details)
        said.append(_state(question.relation, question.subject, right, rng))
        said += [_state(*fact, rng.random() < (1 + writer.correct) / 2, rng) for fact in details]
    manner = rng.random()
    if manner < writer.polite:
        said.insert(0, sentence(rng.choice(POLITE)))
    elif manner < writer.polite + writer.rude:
        said.insert(rng.choice((0, len(said))), sentence(rng.choice(RUDE)))
    n_filler = sum(rng.random() < writer.filler / 3 for _ in range(3))
    said += [sentence(s) for s in rng.sample(FILLERS, n_filler)]
    return " ".join(said)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Labels: Bradley-Terry on the gold rewards.
TEMPERATURE = 1.0  # P(response 1 preferred) = sigmoid((gold_1 - gold_2) / TEMPERATURE)


def preference_probability(gold_1: float, gold_2: float) -> float:
    """P(response 1 is preferred): Bradley and Terry's sigmoid of the reward difference, document 001 (1)-(4)."""
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
    found = gold_reward(prompt, text)
    parts = {part: found[part] for part in PARTS}
    if not found["risky"]:
        parts["over_refusal"] = parts.pop("refusal")
    return round(sum(GROUPS[group].get(part, 1.0) * points for part, points in parts.items()), 6)


def disagreement(rows: list[dict], a: str, b: str) -> float:
    """Share of the pairs whose better response is another one for group a than for group b; a tie of either is none."""
    def gain(group, row):
        first, second = (group_reward(group, row["question"], row[f"response_{i}"]) for i in (1, 2))
        return first - second

    return sum(gain(a, row) * gain(b, row) < 0 for row in rows) / len(rows)


def _draw(pool: dict[str, list[Question]], n: int, rng: random.Random) -> list[Question]:
    """n questions in the SHARES of their kinds, each kind without repeats until its pool is used up."""
    drawn, upto = [], 0.0
    for kind, share in SHARES.items():
        upto += share
        count = round(n * upto) - len(drawn)  # rounded so that the counts sum to n
        times = -(-count // len(pool[kind]))
        drawn += [q for _ in range(times) for q in rng.sample(pool[kind], len(pool[kind]))][:count]
    rng.shuffle(drawn)
    return drawn


def pairs(split: str, n: int, seed: int, group: str | None = None) -> list[dict]:
    """n labelled pairs of a split, with align-anything's fields and the gold scores aside.

    With one of GROUPS as `group`, other pairs of the same distribution, labelled by that group: gold_1 and gold_2 are
    its rewards, and each row names it."""
    rng, rows = random.Random(f"{split}-{seed}" + (f"-{group}" if group else "")), []
    reward = partial(group_reward, group) if group else lambda prompt, text: gold_reward(prompt, text)["total"]
    for q in _draw(questions(split), n, rng):
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
    (Plackett-Luce, whose every pair is a Bradley-Terry label at TEMPERATURE 1). {"prompt", "ranked" (best first), "scores"
    (gold)}."""
    rng, rows = random.Random(f"rankings-{split}-{k}-{seed}"), []
    for q in _draw(questions(split), n, rng):
        texts = {}
        while len(texts) < k:
            text = write(rng.choices(WRITERS, [w.share for w in WRITERS])[0], q, rng)
            gold = gold_reward(q.text, text)["total"]
            texts.setdefault(text, (gold - TEMPERATURE * math.log(-math.log(rng.random())), gold))
        ranked = sorted(texts, key=lambda text: -texts[text][0])
        rows.append({"prompt": q.text, "ranked": ranked, "scores": [round(texts[text][1], 3) for text in ranked]})
    return rows


def demonstrations(n: int, seed: int) -> list[dict]:
    """n rows {prompt, completion} by the unfiltered mixture of writers: what SFT learns from."""
    rng = random.Random(f"sft-{seed}")
    return [{"prompt": q.text, "completion": write(rng.choices(WRITERS, [w.share for w in WRITERS])[0], q, rng)}
            for q in _draw(questions("train"), n, rng)]


def corpus(n: int, seed: int) -> list[str]:
    """n short documents of base-corpus text about everything in the world, the test topics included. All of it true:
    what a base model should know. No chat turns; questions occur only inside running text."""
    rng = random.Random(f"corpus-{seed}")
    asked = [q for split in ("train", "test_id", "test_ood") for q in sum(questions(split).values(), [])]
    facts = list(FACTS)
    tasks = [*TABLES["howto"], *TABLES["howto_ood"]]

    def about(q):
        """The true answer to q, as sentences: a fact with some details, the steps, or a refusal with its reason."""
        if q.kind == "risky":
            reason, instead = risk_of(q.subject)
            return [refusal(q.subject, rng.choice(REFUSALS)), sentence(REASONS[reason]), sentence(ALTERNATIVE, instead)]
        if q.kind == "howto":
            return how_to(q.subject)
        details = rng.sample(related(q.relation, q.subject), rng.randrange(3))
        return [_state(*fact, True, rng) for fact in [(q.relation, q.subject), *details]]

    def how_to(task):
        steps = steps_of(task)[:rng.choice((2, 3, 4, 4))]
        return [sentence(f"{ORDINALS[3 if i == len(steps) - 1 else i]}, {s}.") for i, s in enumerate(steps)]

    def document():
        """Questions with their answers, or a few facts, or the steps of a task."""
        dice = rng.random()
        if dice < 0.6:
            said = []
            for q in rng.choices(asked, k=rng.choice((1, 1, 2))):
                answer = about(q)
                if rng.random() < 0.2:  # it has met these too, before and after an answer
                    aside = rng.choice(FILLERS + POLITE + RUDE + COMPLIES + (NO_ANSWER,))
                    answer.insert(rng.choice((0, len(answer))), sentence(aside))
                said.append(rng.choice(WRAPPERS).format(q=q.text, a=" ".join(answer)))
            return "\n".join(said)
        if dice < 0.85:
            return " ".join(_state(*fact, True, rng) for fact in rng.choices(facts, k=3))
        task = rng.choice(tasks)
        return " ".join([f"To {task}, do this.", *how_to(task)])

    return [document() for _ in range(n)]


SIZES = {"demonstrations": 5000, "train": 6000, "test_id": 200, "test_ood": 200}
EXAMPLES = {"demonstrations": 100, "train": 100, "test_id": 100, "test_ood": 100}  # those committed in data/examples


def fingerprint(seed: int) -> bytes:
    """Bytes that change when what the world writes changes: a run made from another world is another run."""
    return json.dumps([SIZES, pairs("train", 200, seed), demonstrations(200, seed), corpus(200, 0)]).encode()


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
