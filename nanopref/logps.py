"""From logits to log-probs: the shift by one, the gather, the sum over a response.

The logits at a place predict the token at the next one. `padded_logps` is that in the plain way, as everybody writes it
once; `sequence_logps` is the same on the packed layout of batch.py, where a test proves the two equal in value and in
every gradient. Units are nats throughout, and a sequence's log-prob is the SUM over its tokens, EOS included.
"""
import torch
import torch.nn.functional as F

from nanopref.batch import Batch, collate
from nanopref.losses import Seq

LOGITS = 2 ** 24  # numbers: 64 MB in float32; all of 8 pairs x 256 tokens x 49,152 would be 800 MB, several times over


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


def predictors(batch: Batch) -> torch.Tensor:
    """The shift on packed rows, (N,): where in the flattened (B*T) each response token is predicted. That is one place to
    its left; for a response's first token it is the prompt's last, whatever stands between the two."""
    response = batch.response
    is_first = response.diff(prepend=response.new_full((1,), -1)) != 0
    return torch.where(is_first, batch.prompt_end[response], batch.place - 1)


def token_logps(model, batch: Batch) -> torch.Tensor:
    """log pi(y_t | x, y_<t) in nats of every response token, (N,), float32 at least. The head runs at these positions
    only; where their logits would be many, a chunk at a time, so that memory does not grow with N x vocabulary."""
    hidden = model(batch.input_ids, batch.position_ids, batch.attn_mask()).flatten(0, 1)[predictors(batch)]  # (N, d)
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
