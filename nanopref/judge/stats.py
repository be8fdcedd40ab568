"""Means, shares and how uncertain they are."""
import math


def mean(values) -> float:
    """Of a list of numbers."""
    return sum(values) / len(values)


def mean_se(values) -> list[float]:
    """[mean, standard error of the mean] of a list of numbers; the error of fewer than two is 0."""
    n, middle = len(values), mean(values)
    return [middle, math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0]


def difference(a, b) -> tuple[float, float]:
    """(a minus b, its standard error) of two independent [mean, standard error]."""
    return a[0] - b[0], (a[1] ** 2 + b[1] ** 2) ** 0.5


def wilson(correct, n) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a share of which `correct` of n were seen; never leaves 0 to 1."""
    z, share = 1.96, correct / n
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return min(low, share), max(high, share)  # n of n ends at 1, not a rounding error below


def share(outcomes) -> tuple[float, float, float]:
    """(share, low, high): the mean of a list of 1, 0 and, for a tie, 1/2, with its 95 % interval (`wilson`)."""
    return (mean(outcomes), *wilson(sum(outcomes), len(outcomes)))


def outcomes(values, others) -> list[float]:
    """Per pair of two lists: 1 if the first value is higher, 1/2 for a tie, 0 if it is lower."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(values, others)]


def win_rate(scores, others) -> dict:
    """{"win": [mean, se] with ties as 1/2, "ties": share} of paired lists of scores."""
    wins = outcomes(scores, others)
    return {"win": mean_se(wins), "ties": mean([w == 0.5 for w in wins])}
