"""One layout for everything: a prompt and its responses.

The prompt is forwarded once. Its responses (chosen and rejected; one for SFT and unpaired KTO; K for a ranking) attend
to it and to themselves, not to each other, and their positions start again after the prompt. Examples stand side by
side in rows of about ROW tokens, so that hardly any token is padding. Two examples in one row, the first a pair:

    row        p  p  p  c  c  c  r  r  |  p  p  c  c  c          p prompt   c chosen   r rejected
    example    0  0  0  0  0  0  0  0  |  1  1  1  1  1          attend only within your example,
    segment    0  0  0  1  1  1  2  2  |  0  0  1  1  1          and there to segment 0 and to your own, never ahead
    position   0  1  2  3  4  5  3  4  |  0  1  2  3  4          both responses continue the prompt
    c0 and r0 are both predicted at the last p.  Every response is scored as if its sibling were not there.

`layout` is one example, `pack` the rows, `collate` the tensors. logps.py makes log-probs of them, and has the plain way
(one padded row per response, the prompt twice), which all this must equal.
"""
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

ROW = 256  # tokens per row: long enough to fill well, short enough that attention stays cheap
# Roles. MISMATCHED: some other prompt's response, for KTO's KL estimate. BETWEEN: in a ranking, of which CHOSEN is the
# best response and REJECTED the worst.
CHOSEN, REJECTED, MISMATCHED, BETWEEN = 0, 1, 2, 3


@dataclass(frozen=True)
class Example:
    """Token ids of one prompt and its responses. `roles` says what each response is; `ref_logps` (nats, summed over
    the response) comes from the reference model; `scores` is what the data says each response is worth; `group` is the
    number of the annotators' group, and of the head that learns from it; `row` is what all this was made of."""
    prompt: list
    responses: list
    roles: list
    ref_logps: list = None
    scores: list = None
    group: int = 0
    row: object = None

    @property
    def n_tokens(self):
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass
class Batch:
    """N response tokens of R responses, packed into B rows of T tokens."""
    input_ids: torch.Tensor     # (B, T)
    position_ids: torch.Tensor  # (B, T)
    example: torch.Tensor       # (B, T) index of the example, -1 for padding
    segment: torch.Tensor       # (B, T) 0 prompt, 1.. responses
    target: torch.Tensor        # (N,) the response tokens, EOS included, prompt and padding excluded
    place: torch.Tensor         # (N,) where in the flattened (B*T) they stand
    response: torch.Tensor      # (N,) which of the R responses the token belongs to
    prompt_end: torch.Tensor    # (R,) where in the flattened (B*T) the prompt before the response ends
    last: torch.Tensor          # (R,) where the response ends
    roles: torch.Tensor         # (R,)
    chosen: torch.Tensor        # (B_w,) which of the R responses have this role
    rejected: torch.Tensor      # (B_l,) the same
    mismatched: torch.Tensor    # (B_kl,) the same
    lengths: torch.Tensor       # (R,) tokens
    ref_logps: torch.Tensor     # (R,) nats, or NaN where no reference was computed
    scores: torch.Tensor        # (R,) points, or NaN where the data has none
    group: torch.Tensor         # (R,) number of the annotators' group
    n_examples: int

    def to(self, device):
        """The same batch on `device`; to a GPU from pinned memory, which it fetches by itself while the CPU goes on."""
        pin = torch.device(device).type == "cuda"
        moved = {k: (v.pin_memory() if pin else v).to(device, non_blocking=pin)
                 for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def attn_mask(self):
        """(B, 1, T, T) bool: within the example, not ahead, and to the prompt or the own response only."""
        example, segment = self.example, self.segment
        same = (example[:, :, None] == example[:, None, :])
        visible = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
        return (same & visible).tril()[:, None]


class Layout(NamedTuple):
    """One example of n tokens, as in the picture above: its prompt, then its responses."""
    ids: np.ndarray        # (n,)
    positions: np.ndarray  # (n,)
    segments: np.ndarray   # (n,) 0 prompt, 1.. responses


def layout(example: Example) -> Layout:
    """The tokens of one example in a row; every response continues the prompt."""
    prompt, lengths = example.prompt, [len(response) for response in example.responses]
    after_prompt = [range(len(prompt), len(prompt) + n) for n in lengths]
    return Layout(ids=np.concatenate([prompt, *example.responses]),
                  positions=np.concatenate([range(len(prompt)), *after_prompt]),
                  segments=np.repeat(range(1 + len(lengths)), [len(prompt), *lengths]))


def pack(lengths, width) -> list[list[int]]:
    """Rows of at most `width` tokens, [[number of an example, ...], ...]: longest first, each into the first row that
    has room."""
    rows, free = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, room in enumerate(free) if room >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(width)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def collate(examples) -> Batch:
    """Examples packed into rows, as tensors. What is per token or per response stands in the order of the examples,
    whatever row they are in."""
    layouts, n_tokens = [layout(e) for e in examples], [e.n_tokens for e in examples]
    rows = pack(n_tokens, width=max(ROW, max(n_tokens)))
    T = max(sum(n_tokens[i] for i in row) for row in rows)
    ids, positions, segments = np.zeros((3, len(rows), T), np.int64)
    example, starts = np.full((len(rows), T), -1), np.zeros(len(examples), np.int64)
    for number, row in enumerate(rows):
        at = 0
        for i in row:
            place = number, slice(at, at + n_tokens[i])
            ids[place], positions[place], segments[place] = layouts[i].ids, layouts[i].positions, layouts[i].segments
            example[place], starts[i] = i, number * T + at  # in the flattened (B*T)
            at += n_tokens[i]
    responses = [response for e in examples for response in e.responses]
    lengths = torch.tensor([len(response) for response in responses])
    first = starts + [len(e.prompt) for e in examples]  # where the first response of each example begins
    place = np.concatenate([at + np.arange(sum(map(len, e.responses))) for at, e in zip(first, examples)])
    roles = torch.tensor([role for e in examples for role in e.roles])
    return Batch(
        *map(torch.as_tensor, (ids, positions, example, segments)),
        target=torch.as_tensor(np.concatenate(responses)), place=torch.as_tensor(place),
        response=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        prompt_end=torch.as_tensor(np.repeat(first - 1, [len(e.responses) for e in examples])),
        last=torch.as_tensor(place)[lengths.cumsum(0) - 1],
        roles=roles, chosen=(roles == CHOSEN).nonzero().flatten(), rejected=(roles == REJECTED).nonzero().flatten(),
        mismatched=(roles == MISMATCHED).nonzero().flatten(), lengths=lengths,
        ref_logps=_per_response(examples, "ref_logps"), scores=_per_response(examples, "scores"),
        group=torch.tensor([e.group for e in examples for _ in e.responses]), n_examples=len(examples))


def _per_response(examples, name):
    """A field of the examples with a number per response, (R,); NaN where an example has none."""
    return torch.tensor([x for e in examples for x in getattr(e, name) or [float("nan")] * len(e.responses)])


def step_counts(examples, pairs: bool) -> tuple[int, int]:
    """(terms, chosen tokens) of one optimiser step on `examples`: what its sums are divided by. A term is a pair, or
    without `pairs` every chosen and every rejected response by itself."""
    length_of = {role: [len(response) for e in examples for response, r in zip(e.responses, e.roles) if r == role]
                 for role in (CHOSEN, REJECTED)}
    return len(length_of[CHOSEN]) + (0 if pairs else len(length_of[REJECTED])), sum(length_of[CHOSEN])


def batches(examples, batch_size, seed, epochs):
    """Lists of `batch_size` examples, each epoch in its own seeded order; the last, smaller list of an epoch is left
    out, so that every step averages over the same number of pairs."""
    for epoch in range(epochs):
        order = list(range(len(examples)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield [examples[i] for i in order[start:start + batch_size]]


