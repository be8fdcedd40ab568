"""Means, shares and differences, and how uncertain they are.

Values that belong together are not independent: 200 test prompts of the embedded world ask about 69 subjects, and who
knows one of them answers all its questions well. So every error here takes `clusters`, a key per value; values of one
key may be correlated in any way. Two policies that have answered the same prompts are compared prompt by prompt.
"""
import math


def mean(values) -> float:
    """Of a list of numbers."""
    return sum(values) / len(values)


def mean_se(values, clusters=None) -> list:
    """[mean, standard error of the mean] of a list of numbers; without clusters each is one of its own. The error is
    None, unknown, where all are one cluster.

    With the deviations from the mean summed in each of G clusters to e_g:  se^2 = G / (G - 1) sum e_g^2 / n^2
    (Liang and Zeger 1986); of single values it is their variance / n."""
    middle, sums = mean(values), {}
    for cluster, value in zip(clusters or range(len(values)), values):
        sums[cluster] = sums.get(cluster, 0.0) + value - middle
    G = len(sums)
    return [middle, math.sqrt(G / (G - 1) * sum(e * e for e in sums.values())) / len(values) if G > 1 else None]


def paired(values, others, clusters=None) -> list:
    """[mean of values minus others, standard error] of two lists about the same prompts."""
    return mean_se([a - b for a, b in zip(values, others)], clusters)


def wilson(correct, n) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a share of which `correct` of n were seen; never leaves 0 to 1."""
    z, share = 1.96, correct / n
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return max(min(low, share), 0.0), max(high, share)  # 0 of n begins at 0, n of n ends at 1: no rounding error off


def effective_n(estimate, n, n_clusters) -> float:
    """How many independent values would give a share of these n its [share, standard error] (Korn and Graubard 1998): n
    times the error's square that independent values have, share (1 - share) / (n - 1), over its own, and no more than
    n. Where all are alike nothing shows how clusters hang together: then as many as there are clusters."""
    share, error = estimate
    return min(n, n * share * (1 - share) / (n - 1) / error ** 2) if error else n_clusters


def share(outcomes, clusters=None) -> tuple[float, float, float]:
    """(share, low, high): the mean of a list of 1, 0 and, for a tie, 1/2, with its 95 % interval: `wilson` of the
    `effective_n`."""
    estimate, n_clusters = mean_se(outcomes, clusters), len(set(clusters or range(len(outcomes))))
    return (estimate[0], *share_interval(estimate, len(outcomes), n_clusters))


def share_interval(estimate, n, n_clusters) -> tuple[float, float]:
    """The 95 % interval of a share of n values that is known as [share, standard error]."""
    n = effective_n(estimate, n, n_clusters)
    return wilson(estimate[0] * n, n)


def outcomes(values, others) -> list[float]:
    """Per pair of two lists: 1 if the first value is higher, 1/2 for a tie, 0 if it is lower."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(values, others)]


def win_rate(scores, others, clusters=None) -> dict:
    """{"win": [mean, se] with ties as 1/2, "ties": share} of paired lists of scores."""
    wins = outcomes(scores, others)
    return {"win": mean_se(wins, clusters), "ties": mean([w == 0.5 for w in wins])}
