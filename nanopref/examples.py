"""From preference data to token ids: which rows are trained on, which are tested on, and what was cut or dropped."""
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from . import world
from .batch import BETWEEN, CHOSEN, MISMATCHED, REJECTED, Example
from .data import Row, read, split
from .distributed import from_main
from .errors import UserError
from .text import encode_prompt, encode_response, truncate

CORPUS_DOCUMENTS = 80_000
TEST_FRACTION = 0.1  # of a file without a test split; the same prompt never stands on both sides


@dataclass
class Splits:
    """Rows by use. `tests` maps a split's name to its rows; `gold` says whether the gold reward can judge answers."""
    sft: list
    train: list
    tests: dict
    gold: bool
    notes: list
    best_accuracy: dict  # per test split: what no judge can beat on these labels; empty for real data


def load(config) -> Splits:
    """The rows a run needs. The embedded world is written to files first and read like any other data."""
    if config.data == "world":
        folder = Path(config.out) / "world" / f"data-seed{config.seed}"
        written, train = from_main(lambda: world.make(folder, config.seed)), "train"
        if config.knobs.get("ranking", 2) > 2:
            train = from_main(lambda: world.make_rankings(folder, config.knobs["ranking"], config.seed))
        files = {name: read(folder / f"{name}.jsonl", config.strict) for name in {*written, train}}
        best = {name: world.best_accuracy(written[name]) for name in ("test_id", "test_ood")}
        return Splits(files["sft"].rows[:config.rows], files[train].rows[:config.rows],
                      {name: files[name].rows for name in best}, True, [f"data: the embedded world, in {folder}"], best)
    data = {name: read(path, config.strict, config.axis) for name, path in config.files.items()}
    rows = {name: _with_system(found.rows, config.system) for name, found in data.items()}
    if "test" in rows:  # a prompt that stands on both sides is for testing only
        tested = {row.key for row in rows["test"]}
        train, test = [row for row in rows["train"] if row.key not in tested], rows["test"]
    else:
        train, test = split(rows["train"], TEST_FRACTION, seed=0)
    if not train or not test:
        raise UserError(f"{config.data}: {len(rows['train'])} rows are too few to keep {TEST_FRACTION:.0%} for testing")
    notes = [f"data: {found.summary()}" for found in data.values()]
    notes.append(f"{len(train)} rows to train on, {len(test)} to test on")
    shared = len(rows["train"]) - len(train) if "test" in rows else 0
    notes += [f"{shared} training rows left out: their prompts are in the test data"] if shared else []
    sft = [row for row in train if row.chosen is not None]
    return Splits(sft[:config.rows], train[:config.rows], {"test": test}, False, notes, {})


def _with_system(rows, text):
    """The rows with `text` as system message where they have none; None leaves that to the chat template."""
    if text is None:
        return rows
    message = {"role": "system", "content": text}
    return [row if row.prompt[0]["role"] == "system" else replace(row, prompt=(message, *row.prompt)) for row in rows]


def plain_texts(config) -> list[str]:
    """What the base model reads: the world's corpus, or the training side of a file as running text."""
    if config.data == "world":
        return world.corpus(CORPUS_DOCUMENTS, seed=0)
    rows = load(config).train
    turns = lambda row, answer: "\n\n".join([message["content"] for message in row.prompt] + [answer])
    return [turns(row, answer) for row in rows for answer in (row.chosen, row.rejected) if answer]


def text_examples(tokenizer, texts, max_length) -> list[Example]:
    """Plain text in the one layout: an empty prompt (BOS) and the text as its response, in pieces of `max_length`."""
    prompt, room = encode_prompt(tokenizer, []), max_length - 1
    ids = [encode_response(tokenizer, text) for text in texts]
    return [Example(prompt, [piece[i:i + room]], [CHOSEN]) for piece in ids for i in range(0, len(piece), room)]


def encode(tokenizer, rows: list[Row], loss_inputs, max_length: int, seed: int = 0,
           groups=None) -> tuple[list[Example], Counter]:
    """Examples with the responses a loss reads (its `inputs`: some of "w", "l", "kl"; "between" for the rest of a
    ranking) and counts of what was cut.

    Rows without any of these responses are left out; pairs that became equal by cutting are dropped and counted. For
    "kl" every example also gets a response that belongs to another prompt, the next one in a seeded order. `groups`:
    the names of the annotators' groups that a model has heads for; rows of no such group are left out.
    """
    counts, kept = Counter(), []
    for row in rows:
        between = [("between", BETWEEN, text) for text in row.between]
        best_first = [("w", CHOSEN, row.chosen), *between, ("l", REJECTED, row.rejected)]
        texts = [(role, text) for key, role, text in best_first if key in loss_inputs and text is not None]
        if groups and row.group not in groups:
            counts["rows of no group that the model has a head for, left out"] += 1
            continue
        if not texts or ("l" in loss_inputs and "kl" not in loss_inputs and len(texts) < 2):
            counts["rows without a response that this loss needs, left out"] += 1
            continue
        kept.append(Example(encode_prompt(tokenizer, row.prompt), [encode_response(tokenizer, t) for _, t in texts],
                            [role for role, _ in texts], row=row, group=groups.index(row.group) if groups else 0,
                            scores=row.scores if row.scores and len(row.scores) == len(texts) else None))
    examples = []
    for e in kept:
        prompt, responses, cut_tokens, cut_responses = truncate(tokenizer, e.prompt, e.responses, max_length)
        counts["prompts cut on the left"] += cut_tokens > 0
        counts["responses cut on the right"] += cut_responses
        if len(set(map(tuple, responses))) < len(responses):
            counts["pairs equal after cutting, dropped"] += 1
            continue
        examples.append(replace(e, prompt=prompt, responses=responses))
    if "kl" in loss_inputs:
        examples = _with_mismatched(examples, max_length, seed)
    return examples, +counts


def length_balanced(examples: list[Example], seed: int) -> list[Example]:
    """As many pairs whose chosen response is the longer one as pairs whose rejected response is, among pairs that
    differ about as much in length (document 000, section 2.3, question 3: take fewer of what is frequent, more of what
    is rare).

    The pairs are sorted by how much their two lengths differ and cut into ten parts. Within a part of n pairs each
    direction is drawn to n / 2: the more frequent one without some of its pairs, the rarer one with pairs repeated.
    Then length alone predicts nothing, neither its sign nor its size. Pairs of equal length, and parts in which only
    one direction occurs, stay as they are. UserError for rankings."""
    if any(len(e.responses) != 2 for e in examples):
        raise UserError("--balance-length works on pairs: leave it out with rankings")
    rng, balanced = random.Random(seed), []
    longer = lambda e: len(e.responses[0]) - len(e.responses[1])
    order = sorted(examples, key=lambda e: abs(longer(e)))
    for k in range(10):
        part = order[k * len(order) // 10:(k + 1) * len(order) // 10]
        sides = [[e for e in part if longer(e) > 0], [e for e in part if longer(e) < 0]]
        balanced += [e for e in part if longer(e) == 0] + ([] if all(sides) else sides[0] + sides[1])
        half = -(-(len(sides[0]) + len(sides[1])) // 2)
        for side in sides if all(sides) else []:
            times, rest = divmod(half, len(side))
            balanced += side * times + rng.sample(side, rest)
    return balanced


def held_out_pairs(tokenizer, splits: Splits, max_length: int, groups=None) -> dict:
    """{split: Examples of the pairs that a judge is tested on}; what was cut or dropped is added to splits.notes.
    UserError for a split without pairs."""
    found = {}
    for name, rows in splits.tests.items():
        found[name], counts = encode(tokenizer, rows, ("w", "l"), max_length, groups=groups)
        splits.notes += [f"{name}: {n} {what}" for what, n in counts.items()]
        if not found[name]:
            dropped = "; ".join(f"{n} {what}" for what, n in counts.items())
            raise UserError(f"{name}: none of {len(rows)} test rows is a pair to test on ({dropped}): give other data, "
                            "as --test-data or --data")
    return found


def _with_mismatched(examples, max_length, seed):
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    if len({tuple(e.prompt) for e in examples}) < 2:
        raise UserError("kto needs rows of at least two different prompts: its KL is estimated on mismatched responses")
    paired = {}
    for at, i in enumerate(order):
        others = (examples[order[(at + ahead) % len(order)]] for ahead in range(1, len(order)))
        other = next(o for o in others if o.prompt != examples[i].prompt)
        room = max_length - len(examples[i].prompt)  # a stranger's long answer must not push the own prompt out
        paired[i] = other.responses[i % len(other.responses)][:room]
    return [replace(e, responses=[*e.responses, paired[i]], roles=[*e.roles, MISMATCHED])
            for i, e in enumerate(examples)]
