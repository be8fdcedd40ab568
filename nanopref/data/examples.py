"""From rows to token ids: the responses a loss reads, and what was cut or dropped on the way."""
import random
from collections import Counter
from dataclasses import replace

from nanopref.batch import BETWEEN, CHOSEN, MISMATCHED, REJECTED, Example
from nanopref.data.files import Row
from nanopref.errors import UserError
from nanopref.text import encode_prompt, encode_response, truncate


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
    differ about as much in length (course report, section 2.3, question 3: take fewer of what is frequent, more of what
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
