"""The Bradley-Terry reward model: its loss, the gradient derived by hand under it, and how a response gets its reward.

A reward r(x, y) is a number without unit or origin: only differences between answers to one prompt mean anything, as
P(chosen is preferred) = sigmoid(r_chosen - r_rejected).
"""
import torch
import torch.nn.functional as F

from .batch import CHOSEN, REJECTED, Batch, at_least_float32, collate
from .evaluate import mean_se


def bradley_terry(chosen, rejected):
    """The negative log-likelihood of the labels (documents 001 and 003; Ouyang et al. 2022, eq. 1).

    loss = -log sigmoid(r_w - r_l)
    chosen, rejected: rewards (B,). Returns (B,) nats per pair; log 2 where the two rewards are equal."""
    return -F.logsigmoid(chosen - rejected)


def d_bradley_terry(chosen, rejected):
    """(d loss / d r_w, d loss / d r_l), (B,) each: with s = sigmoid(r_l - r_w), the probability given to the wrong
    order, -s and +s. A pair that is ranked right with certainty no longer teaches."""
    s = torch.sigmoid(rejected - chosen)
    return -s, s


def ranked_pairs(ranked):
    """Columns (better, worse) of every pair of a ranking (B, K), K (K - 1) / 2 of each."""
    if ranked.ndim != 2 or ranked.shape[1] < 2:
        raise ValueError(f"expected rewards (B, K) of at least two responses, got shape {tuple(ranked.shape)}")
    return torch.triu_indices(ranked.shape[1], ranked.shape[1], offset=1)


def ranking(ranked):
    """InstructGPT's loss of a ranking of K responses (Ouyang et al. 2022, eq. 1; document 003): Bradley-Terry over all
    K (K - 1) / 2 pairs of one prompt, averaged, so that a prompt counts once however many responses it has.

    ranked: rewards (B, K), K >= 2, the best response first, no ties; ValueError for another shape. Returns (B,) nats;
    K = 2 is bradley_terry."""
    better, worse = ranked_pairs(ranked)
    return bradley_terry(ranked[:, better], ranked[:, worse]).mean(1)


def d_ranking(ranked):
    """d loss / d reward, (B, K): every pair pushes its better response up and its worse one down."""
    better, worse = ranked_pairs(ranked)
    d_better, d_worse = d_bradley_terry(ranked[:, better], ranked[:, worse])
    grad = torch.zeros_like(ranked).index_add(1, better, d_better).index_add(1, worse, d_worse)
    return grad / len(better)


def length_normalised(reward, length, alpha):
    """r / (alpha + len) (document 000, section 2.3, question 3): reward (B,), length (B,) tokens, alpha in tokens.

    Meant against long answers; but dividing a NEGATIVE reward makes it larger, so among answers below 0 length pays; and
    which answers those are is an accident, as a reward has no origin. The penalty below does not need one."""
    return reward / (alpha + length)


def length_penalised(reward, length, lam, target):
    """r - lam |len - target|: lam in reward per token, target in tokens.

    Document 000 (section 2.3, question 3) adds the term to the loss of the reward model instead. There it changes
    nothing, as it does not depend on the parameters."""
    return reward - lam * (length - target).abs()


def rewards(model, batch: Batch) -> torch.Tensor:
    """The reward of every response, (R,) float32 at least: the scalar head at its last token, which is the end of turn
    unless the response was cut."""
    hidden = model(batch.input_ids, batch.position_ids, batch.attn_mask()).flatten(0, 1)  # (B*T, d)
    return at_least_float32(model.score(hidden[batch.last])[:, 0])


def pair_rewards(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards (chosen, rejected) of a batch of pairs, (B,) each."""
    found = rewards(model, batch)
    return found[batch.roles == CHOSEN], found[batch.roles == REJECTED]


def reward_metrics(parts) -> dict:
    """Means over one optimiser step, under train_po.py's names; `parts` is a list of (chosen, rejected), one per
    micro-batch."""
    chosen, rejected = (torch.cat(side).detach() for side in zip(*parts))
    return {"rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "rewards/accuracies": (chosen > rejected).float().mean().item()}


@torch.no_grad()
def judge(model, pairs) -> dict:
    """Document 000's three figures, and the margin, on a list of pairs (Examples), each [value, standard error or 0]:

    n_pairs      how many there are
    accuracy     share of pairs whose chosen response has the higher reward; a tie is wrong
    reward_mean  over all responses, chosen and rejected
    reward_std   of the same
    margin       mean of chosen minus rejected
    """
    model.eval()
    device, chosen, rejected = next(model.parameters()).device, [], []
    for start in range(0, len(pairs), 64):
        w, l = pair_rewards(model, collate(pairs[start:start + 64]).to(device))
        chosen, rejected = chosen + w.tolist(), rejected + l.tolist()
    both = torch.tensor(chosen + rejected)
    return {"n_pairs": [len(pairs), 0.0], "accuracy": mean_se([float(w > l) for w, l in zip(chosen, rejected)]),
            "reward_mean": [both.mean().item(), 0.0], "reward_std": [both.std().item(), 0.0],
            "margin": mean_se([w - l for w, l in zip(chosen, rejected)])}
