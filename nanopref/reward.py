"""The Bradley-Terry reward model: its loss, the gradient derived by hand under it, and how a response gets its reward.

A reward r(x, y) is a number without unit or origin: only differences between answers to one prompt mean anything, as
P(chosen is preferred) = sigmoid(r_chosen - r_rejected).
"""
import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from nanopref.batch import CHOSEN, Batch, Example
from nanopref.errors import UserError
from nanopref.logps import at_least_float32, score
from nanopref.model import Transformer
from nanopref.text import encode_prompt, encode_response, truncate


class RewardModel(Transformer):
    """The transformer with one number in place of the vocabulary, or one per group of annotators: its head `score`.
    `groups` and `length_rule` are as in check_head, and kept in the folder's config.json."""

    def __init__(self, config, groups=None, length_rule=None):
        check_head(config.num_labels, groups, length_rule)
        super().__init__(replace(config, num_labels=len(groups or ["everybody"])))
        self.groups, self.length_rule = groups, length_rule


def check_head(num_labels, groups, length_rule) -> None:
    """UserError unless these make sense: num_labels as many as there are heads, or 0: not said; groups the names of the
    annotators' groups that the heads belong to, or None: one head, for everybody; length_rule as in by_length."""
    names = ["everybody"] if groups is None else groups
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names) or (
            len(set(names)) < len(names)):
        raise UserError(f"config: groups must be a list of different names, not {groups!r}")
    if num_labels not in (0, len(names)):
        raise UserError(f"config: num_labels must be 0 or {len(names)}, not {num_labels!r}")
    if length_rule is not None and not (
            isinstance(length_rule, dict) and set(length_rule) in ({"alpha", "mean"}, {"penalty", "mean"})
            and all(type(x) in (int, float) and 0 <= x < math.inf for x in length_rule.values())
            and length_rule.get("alpha", 1) + length_rule["mean"] > 0):  # 0 would make every reward 0
        raise UserError("config: length_rule must hold alpha or penalty, and mean, all finite and at least 0, and "
                        f"alpha + mean above 0, not {length_rule!r}")


def bradley_terry(chosen, rejected, margin=0.0, center=0.0):
    """The negative log-likelihood of the labels (slides, guide; Ouyang et al. 2022, eq. 1), with two additions
    that are 0 unless asked for.

    loss = -log sigmoid(r_w - r_l - margin) + center (r_w + r_l)^2

    chosen, rejected: rewards (B,). margin, a number or (B,): how far apart the two must be to count as ranked right
    (Touvron et al. 2023, Llama 2, eq. 2). center, per squared reward: a pull of each pair's mean to 0, the origin that
    the labels leave open (Eisenstein et al. 2023). Returns (B,) nats per pair; log 2 where the two rewards are equal
    (and margin and center 0)."""
    return -F.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2


def d_bradley_terry(chosen, rejected, margin=0.0, center=0.0):
    """(d loss / d r_w, d loss / d r_l), (B,) each: with s = sigmoid(r_l + margin - r_w), the probability given to the
    wrong order, -s and +s. A pair that is ranked right with certainty no longer teaches. Centring adds the same to
    both: 2 center (r_w + r_l)."""
    s, c = torch.sigmoid(rejected + margin - chosen), 2 * center * (chosen + rejected)
    return c - s, c + s


def ranked_pairs(ranked):
    """Columns (better, worse) of every pair of a ranking (B, K), K (K - 1) / 2 of each."""
    if ranked.ndim != 2 or ranked.shape[1] < 2:
        raise ValueError(f"expected rewards (B, K) of at least two responses, got shape {tuple(ranked.shape)}")
    return torch.triu_indices(ranked.shape[1], ranked.shape[1], offset=1)


def ranking(ranked, margins=0.0, center=0.0):
    """InstructGPT's loss of a ranking of K responses (Ouyang et al. 2022, eq. 1; guide): Bradley-Terry over all
    K (K - 1) / 2 pairs of one prompt, averaged, so that a prompt counts once however many responses it has.

    ranked: rewards (B, K), K >= 2, the best response first, no ties; ValueError for another shape. margins: a number or
    (B, K (K - 1) / 2), in the order of ranked_pairs. Returns (B,) nats; K = 2 is bradley_terry."""
    better, worse = ranked_pairs(ranked)
    return bradley_terry(ranked[:, better], ranked[:, worse], margins, center).mean(1)


def d_ranking(ranked, margins=0.0, center=0.0):
    """d loss / d reward, (B, K): every pair pushes its better response up and its worse one down."""
    better, worse = ranked_pairs(ranked)
    d_better, d_worse = d_bradley_terry(ranked[:, better], ranked[:, worse], margins, center)
    grad = torch.zeros_like(ranked).index_add(1, better, d_better).index_add(1, worse, d_worse)
    return grad / len(better)


def rankings_of(batch: Batch) -> list[torch.Tensor]:
    """Which of the batch's R responses are ranked with which: for each number K of responses that occurs (K, B_K), the
    best ones' numbers first and the worst ones' last, so that of pairs it is (chosen, rejected)."""
    example = batch.example.flatten()[batch.last]  # (R,) to which of them a response belongs; they stand best first
    sizes = torch.bincount(example)
    return [(sizes[example] == K).nonzero().view(-1, K).T for K in sizes.unique().tolist()]


def batch_loss(reward, batch: Batch, margin=0.0, center=0.0):
    """The loss summed over the examples of a batch, pairs or rankings, from the rewards (R,) of its responses; `margin`
    is per point of difference between the scores that the data gives to better and worse."""
    total = 0.0
    for numbers in rankings_of(batch):
        ranked, scores = reward[numbers].T, batch.scores[numbers].T  # (B_K, K)
        better, worse = ranked_pairs(ranked)
        margins = margin * (scores[:, better] - scores[:, worse]) if margin else 0.0
        total = total + ranking(ranked, margins, center).sum()
    return total


def length_normalised(reward, length, alpha):
    """r / (alpha + len) (course report, section 2.3, question 3): reward (B,), length (B,) tokens, alpha in tokens.

    Meant against long answers; but dividing a NEGATIVE reward makes it larger, so among answers below 0 length pays;
    and which answers those are is an accident, as a reward has no origin. The penalty below does not need one."""
    return reward / (alpha + length)


def length_penalised(reward, length, lam, target):
    """r - lam |len - target|: lam in reward per token, target in tokens.

    The course report (section 2.3, question 3) adds the term to the loss of the reward model instead. There it changes
    nothing, as it does not depend on the parameters."""
    return reward - lam * (length - target).abs()


def by_length(rule, reward, length):
    """The reward after a model's own rule about length; the same in training and ever after. `rule`, of its config.json:

    None                          as it is
    {"alpha": a, "mean": L0}      length_normalised times the constant a + L0, so that at L0 a reward stays what it is
    {"penalty": lam, "mean": L0}  length_penalised with target L0
    L0 is the mean length of the training responses, in tokens."""
    if rule is None:
        return reward
    length = length.to(reward.dtype)
    if "alpha" in rule:
        return (rule["alpha"] + rule["mean"]) * length_normalised(reward, length, rule["alpha"])
    return length_penalised(reward, length, rule["penalty"], rule["mean"])


def rewards(model, batch: Batch) -> torch.Tensor:
    """The reward of every response, (R,) float32 at least: the scalar head at its last token, which is the end of turn
    unless the response was cut; the head of its group where there are several; after the model's rule about length."""
    hidden = model(batch.input_ids, batch.position_ids, batch.attn_mask()).flatten(0, 1)  # (B*T, d)
    last = at_least_float32(hidden[batch.last])  # (R, d)
    with torch.autocast(last.device.type, enabled=False):  # rounded to bf16, most rewards would be ties
        reward = F.linear(last, at_least_float32(model.score.weight)).gather(1, batch.group[:, None])[:, 0]
    return by_length(model.length_rule, reward, batch.lengths)


def score_answers(model, tokenizer, asked, progress=lambda parts: parts) -> tuple[list, int]:
    """(the reward of every answer, [[float, ...], ...]; in how many of `asked` something was cut to fit the context).

    asked: [(prompt, answers), ...]. A prompt is messages, as in Row.prompt, or a string, one message of the user; an
    answer is a text or the token ids of one."""
    examples, n_cut = [], 0
    for prompt, answers in asked:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = [encode_response(tokenizer, answer) if isinstance(answer, str) else answer for answer in answers]
        prompt_ids, responses, *cut = truncate(tokenizer, encode_prompt(tokenizer, messages), ids,
                                               model.config.max_position_embeddings)
        examples.append(Example(prompt_ids, responses, [CHOSEN] * len(responses)))
        n_cut += any(cut)
    return score(model, examples, rewards, progress), n_cut


def by_rank(reward, batch: Batch) -> list[torch.Tensor]:
    """The rewards (R,) of a batch, sorted out as in `rankings_of`: for each K (K, B_K), best to worst."""
    return [reward.detach()[numbers] for numbers in rankings_of(batch)]


def reward_metrics(parts) -> dict:
    """Means over one optimiser step, under train_po.py's names; `parts`: what by_rank gave for its micro-batches.
    Chosen and rejected are the best and the worst response of a ranking, and the margin is between these two; the
    accuracy is the share of ALL its pairs ranked right, as among best and worst alone label noise is rarer."""
    chosen, rejected = (torch.cat([ranked[at] for ranked in parts]) for at in (0, -1))
    is_right = []
    for ranked in parts:  # (K, B_K)
        better, worse = ranked_pairs(ranked.T)
        is_right.append((ranked[better] > ranked[worse]).flatten())
    return {"rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "rewards/accuracies": torch.cat(is_right).float().mean().item()}
