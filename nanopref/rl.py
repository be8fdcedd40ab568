"""What PPO adds to the policy gradient, as plain functions: advantages, the clipped surrogate, KL estimates.

Time t counts the tokens of a response; the state is the prompt and the tokens so far, the action is the next token.
Source: the guide, section RLHF, and the papers named at each function. Gradients by hand stand under their function.
"""
import torch
from torch import Tensor


def sequence_reward(reward: Tensor, logp: Tensor, ref_logp: Tensor, beta: float) -> Tensor:
    """r(x, y) - beta (log pi(y|x) - log pi_ref(y|x)), (B,): what RLHF maximises in expectation (guide).

    All (B,); log-probs in nats, summed over the response; beta in reward per nat. The policy gradient takes it as a
    constant: differentiating the -beta log pi in it would add -beta E[grad log pi] = 0."""
    return reward - beta * (logp - ref_logp)


def gae(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16) of one response, (T,).

    A_t = sum_{k >= 0} (gamma lam)^k delta_{t+k},   delta_t = r_t + gamma V_{t+1} - V_t,   V_T = 0: the response is over
    rewards, values: (T,), for each token the reward it brought and the value of the state before it; ValueError for
    other shapes. gamma discounts per token; lam in [0, 1] trades the bias of V (lam = 0: A_t = delta_t) for the noise
    of the return (lam = 1: A_t = return_t - V_t)."""
    if rewards.ndim != 1 or rewards.shape != values.shape:
        raise ValueError(f"expected rewards and values of one shape (T,), got {tuple(rewards.shape)}, "
                         f"{tuple(values.shape)}")
    advantages, next_advantage, next_value = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        advantages[t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[t]
    return advantages


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, epsilon: float = 0.2) -> Tensor:
    """PPO's objective, to be MAXIMISED (Schulman et al. 2017, arXiv:1707.06347, eq. 7; the guide calls it a loss).

    min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A),   rho = pi(a|s) / pi_old(a|s)
    All (N,), per token; logp in nats, old_logp and advantage without gradient. Returns (N,)."""
    ratio = (logp - old_logp).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def d_clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, epsilon: float = 0.2) -> Tensor:
    """d objective / d log pi, (N,): rho A, and 0 where the ratio has already gone beyond the clip in the direction that
    A asks for. Gone too far the other way, it is still pulled back."""
    ratio = (logp - old_logp).exp()
    beyond = torch.where(advantage > 0, ratio > 1 + epsilon, ratio < 1 - epsilon)
    return ratio * advantage * ~beyond


def ppo_ptx(objective: Tensor, pretrain_logp: Tensor, gamma: float) -> Tensor:
    """objective + gamma E[log pi(x)] over pretraining text (Ouyang et al. 2022, eq. 2; slides), to be MAXIMISED.

    objective: (N,), its mean is taken; pretrain_logp: (B,) nats, summed over each text."""
    return objective.mean() + gamma * pretrain_logp.mean()


def kl_estimates(log_ratio: Tensor) -> dict[str, Tensor]:
    """Three estimates of KL(pi || pi_ref) from responses drawn from pi, one per response (Schulman, "Approximating KL
    Divergence", 2020); log_ratio = log pi - log pi_ref, (B,) nats.

    k1 = d             unbiased, can be negative
    k2 = d^2 / 2       biased, never negative
    k3 = e^-d - 1 + d  unbiased and never negative;   d = log_ratio"""
    return {"k1": log_ratio, "k2": log_ratio ** 2 / 2, "k3": torch.expm1(-log_ratio) + log_ratio}
