"""Means, shares and how uncertain they are."""
import math


def mean_se(values) -> list[float]:
    """[mean, standard error of the mean] of a list of numbers; the error of fewer than two is 0."""
    n = len(values)
    mean = sum(values) / n
    return [mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0]


def wilson(correct, n) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a share of which `correct` of n were seen; never leaves 0 to 1."""
    z, share = 1.96, correct / n
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return min(low, share), max(high, share)  # n of n ends at 1, not a rounding error below


def share(outcomes) -> tuple[float, float, float]:
    """(share, low, high): the mean of a list of 1, 0 and, for a tie, 1/2, with its 95 % interval (`wilson`)."""
    return (sum(outcomes) / len(outcomes), *wilson(sum(outcomes), len(outcomes)))


def win_rate(scores, others) -> dict:
    """{"win": [mean, se] with ties as 1/2, "ties": share} of paired lists of scores."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, others)]
    return {"win": mean_se(wins), "ties": sum(w == 0.5 for w in wins) / len(wins)}
