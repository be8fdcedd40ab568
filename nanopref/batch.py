"""One layout for everything: a prompt and its responses.

The prompt is forwarded once. Its responses (chosen and rejected; one for SFT and unpaired KTO; K for a ranking) attend
to it and to themselves, not to each other, and their positions start again after the prompt. Examples stand side by
side in rows of about ROW tokens, so that hardly any token is padding. Two examples in one row, the first a pair:

    row        p  p  p  c  c  c  r  r  |  p  p  c  c  c          p prompt   c chosen   r rejected
    example    0  0  0  0  0  0  0  0  |  1  1  1  1  1          attend only within your example,
    segment    0  0  0  1  1  1  2  2  |  0  0  1  1  1          and there to segment 0 and to your own, never ahead
    position   0  1  2  3  4  5  3  4  |  0  1  2  3  4          both responses continue the prompt
    c0 and r0 are both predicted at the last p.  Every response is scored as if its sibling were not there.

`layout` is one example, `pack` the rows, `collate` the tensors; `padded_logps` is the plain way (one padded row per
response, the prompt twice), which all this must equal. Here is also the only place in which logits and labels are
shifted against each other.
"""
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from nanopref.losses import Seq

ROW = 256  # tokens per row: long enough to fill well, short enough that attention stays cheap
LOGITS = 2 ** 24  # numbers: 64 MB in float32; all of 8 pairs x 256 tokens x 49,152 would be 800 MB, several times over
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
    predictor: torch.Tensor     # (N,) where in the flattened (B*T) the token's prediction is made: one position earlier
    target: torch.Tensor        # (N,) the response tokens, EOS included, prompt and padding excluded
    response: torch.Tensor      # (N,) which of the R responses the token belongs to
    last: torch.Tensor          # (R,) where in the flattened (B*T) the response ends
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
    """One example of n tokens, as in the picture above: its prompt, then its responses. Places count from its start."""
    ids: np.ndarray        # (n,)
    positions: np.ndarray  # (n,)
    segments: np.ndarray   # (n,) 0 prompt, 1.. responses
    predictor: np.ndarray  # (n - len(prompt),) where each response token is predicted
    last: np.ndarray       # (len(responses),) where each response ends


def layout(example: Example) -> Layout:
    """The only shift: a token is predicted one place to its left, a response's first token at the prompt's last."""
    prompt, lengths = example.prompt, [len(response) for response in example.responses]
    after_prompt = [range(len(prompt), len(prompt) + n) for n in lengths]  # every response continues the prompt
    ends = len(prompt) + np.cumsum(lengths)
    predictor = np.arange(len(prompt), ends[-1]) - 1
    predictor[np.cumsum([0, *lengths[:-1]])] = len(prompt) - 1
    return Layout(ids=np.concatenate([prompt, *example.responses]),
                  positions=np.concatenate([range(len(prompt)), *after_prompt]),
                  segments=np.repeat(range(1 + len(lengths)), [len(prompt), *lengths]),
                  predictor=predictor, last=ends - 1)


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
    roles = torch.tensor([role for e in examples for role in e.roles])
    return Batch(
        *map(torch.as_tensor, (ids, positions, example, segments)),
        predictor=torch.as_tensor(np.concatenate([start + one.predictor for start, one in zip(starts, layouts)])),
        target=torch.as_tensor(np.concatenate(responses)),
        response=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        last=torch.as_tensor(np.concatenate([start + one.last for start, one in zip(starts, layouts)])),
        roles=roles, chosen=(roles == CHOSEN).nonzero().flatten(), rejected=(roles == REJECTED).nonzero().flatten(),
        mismatched=(roles == MISMATCHED).nonzero().flatten(), lengths=lengths,
        ref_logps=_per_response(examples, "ref_logps"), scores=_per_response(examples, "scores"),
        group=torch.tensor([e.group for e in examples for _ in e.responses]), n_examples=len(examples))


def _per_response(examples, name):
    """A field of the examples with a number per response, (R,); NaN where an example has none."""
    return torch.tensor([x for e in examples for x in getattr(e, name) or [float("nan")] * len(e.responses)])


def padded_logps(model, examples) -> torch.Tensor:
    """The plain way, which the packed layout must equal: one right-padded row per response, the prompt repeated, a
    causal mask, logits everywhere, shift by one. log pi(y | x) in nats of every response, summed over it, (R,)."""
    rows = [(e.prompt, response) for e in examples for response in e.responses]
    T = max(len(prompt) + len(response) for prompt, response in rows)
    ids, is_response = torch.zeros(len(rows), T, dtype=torch.long), torch.zeros(len(rows), T, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        ids[row, :len(prompt) + len(response)] = torch.tensor(prompt + response)
        is_response[row, len(prompt):len(prompt) + len(response)] = True
    ids, is_response = (x.to(next(model.parameters()).device) for x in (ids, is_response))
    logps = at_least_float32(model.logits(model(ids))).log_softmax(-1)     # (R, T, V): position t predicts t + 1
    logps = logps[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]             # (R, T - 1)
    return (logps * is_response[:, 1:]).sum(-1)


class ChunkedLogps(torch.autograd.Function):
    """log softmax(hidden W^T)[target], computed LOGITS numbers at a time, and again in backward instead of kept.

    With p = softmax(logits): d logp_t / d logits_v = 1[v = target_t] - p_v, by hand below.
    """

    @staticmethod
    def chunks(hidden, weight):
        """Slices of positions whose logits are at most LOGITS numbers."""
        n = max(1, LOGITS // len(weight))
        return [slice(i, i + n) for i in range(0, len(hidden), n)]

    @staticmethod
    def forward(ctx, hidden, head, target):
        """hidden (N, d), head (V, d), target (N,) -> (N,) nats, float32 at least. Products in hidden's precision."""
        logps, log_sums, weight = [], [], head.to(hidden.dtype)
        for part in ChunkedLogps.chunks(hidden, weight):
            logits = at_least_float32(hidden[part] @ weight.T)  # (n, V)
            log_sums.append(logits.logsumexp(-1))
            logps.append(logits.gather(1, target[part, None])[:, 0] - log_sums[-1])
        ctx.save_for_backward(hidden, head, target, torch.cat(log_sums))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, d_logps):
        """d_logps (N,) -> gradients of hidden and head, each summed in its own precision."""
        hidden, head, target, log_sum = ctx.saved_tensors
        d_hidden, d_head, weight = torch.empty_like(hidden), torch.zeros_like(head), head.to(hidden.dtype)
        for part in ChunkedLogps.chunks(hidden, weight):
            d_logits = at_least_float32(hidden[part] @ weight.T).sub_(log_sum[part, None]).exp_()  # p
            d_logits.mul_(-d_logps[part, None]).scatter_add_(1, target[part, None], d_logps[part, None])
            d_logits = d_logits.to(hidden.dtype)
            d_hidden[part] = d_logits @ weight
            if d_head.dtype == hidden.dtype:
                torch.addmm(d_head, d_logits.T, hidden[part], out=d_head)  # += without a copy of the head's size
            else:
                d_head += d_logits.T @ hidden[part]
            del d_logits  # or it would still be there while the next chunk is made
        return d_hidden, d_head, None


def at_least_float32(logits):
    """bf16 and fp16 are too coarse to sum or subtract in."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def token_logps(model, batch: Batch) -> torch.Tensor:
    """log pi(y_t | x, y_<t) in nats of every response token, (N,), float32 at least. The head runs at these positions
    only; where their logits would be many, a chunk at a time, so that memory does not grow with N x vocabulary."""
    hidden = model(batch.input_ids, batch.position_ids, batch.attn_mask()).flatten(0, 1)[batch.predictor]  # (N, d)
    if len(hidden) * model.config.vocab_size <= LOGITS:
        return -F.cross_entropy(at_least_float32(model.logits(hidden)), batch.target, reduction="none")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return ChunkedLogps.apply(hidden.to(dtype), model.head(), batch.target)


def sequence_logps(model, batch: Batch) -> torch.Tensor:
    """log pi(y | x) in nats of every response: the SUM over its tokens, EOS included, (R,)."""
    logps = token_logps(model, batch)
    return logps.new_zeros(len(batch.lengths)).index_add(0, batch.response, logps)


def by_role(batch: Batch, logps: torch.Tensor) -> dict[str, Seq]:
    """What the losses take, by their names for it: {"w": chosen, "l": rejected, "kl": mismatched responses}; a role may
    be empty."""
    numbers = {"w": batch.chosen, "l": batch.rejected, "kl": batch.mismatched}  # by collate: to look now delays a GPU
    ref_logps = batch.ref_logps.to(logps.dtype)
    return {name: Seq(logps[i], ref_logps[i], batch.lengths[i]) for name, i in numbers.items()}


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


@torch.no_grad()
def score(model, examples, function=sequence_logps, progress=lambda parts: parts) -> list:
    """Summed log-probs in nats of every response of every example, [[float, ...], ...], or what another
    function(model, batch) makes of it, as reward.rewards: in eval mode, without gradient, by the very function that
    training uses."""
    was_training = model.training
    model.eval()
    device, scores = next(model.parameters()).device, []
    for start in progress(range(0, len(examples), 64)):
        part = examples[start:start + 64]
        flat = iter(function(model, collate(part).to(device)).tolist())
        scores += [[next(flat) for _ in e.responses] for e in part]
    model.train(was_training)
    return scores
