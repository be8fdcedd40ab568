"""How uncertain a mean, a share and a difference are: by hand, and by how often the truth lies where it should."""
import math
import random
import statistics

import pytest

from nanopref.judge.measures import clusters_of
from nanopref.judge.stats import effective_n, mean_se, paired, share, wilson, win_rate
from nanopref.judge.tables import plus_minus
from nanopref.world import labels


def test_clusters_by_hand():
    """1 2 | 3 6: mean 3, deviations -2 -1 | 0 3, summed -3 | 3; 2 / 1 * 18 / 16 = 2.25."""
    assert mean_se([1, 2, 3, 6], ["a", "a", "b", "b"]) == [3.0, 1.5]
    assert mean_se([1, 2, 3, 6], "aaaa") == [3.0, None] and mean_se([4.0]) == [4.0, None]
    assert plus_minus([3.0, None]) == "3.00 ± ?"


def test_values_of_their_own_have_the_usual_error():
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(50)]
    usual = statistics.stdev(values) / math.sqrt(50)
    for clusters in (None, range(50), [str(i) for i in range(50)]):
        assert mean_se(values, clusters)[1] == pytest.approx(usual, rel=1e-12)


def test_a_copy_of_everything_makes_nothing_surer():
    """The same 20 values three times over, each value a cluster: the error is that of 20."""
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(20)]
    once, thrice = mean_se(values), mean_se(values * 3, list(range(20)) * 3)
    assert thrice == pytest.approx(once, rel=1e-12)
    assert mean_se(values * 3)[1] < 0.6 * once[1]


def test_a_paired_difference_is_not_two_independent_ones():
    """Both have answered the same prompts, of which some are hard: what they share takes no part in the difference."""
    rng = random.Random(2)
    hard = [rng.gauss(0, 3) for _ in range(100)]
    a, b = ([h + rng.gauss(0, 1) for h in hard] for _ in range(2))
    difference, error = paired(a, b)
    assert difference == pytest.approx(sum(a) / 100 - sum(b) / 100)
    assert error == pytest.approx(statistics.stdev(x - y for x, y in zip(a, b)) / 10)
    assert error < 0.5 * math.hypot(mean_se(a)[1], mean_se(b)[1])


def test_two_standard_errors_hold_the_truth_as_often_as_they_say():
    """400 surveys of 200 values about 69 things, half of the variance between things. Two standard errors should miss
    the mean in 5 % of them: 20 ± 4.4. Those that take every value for one of its own miss it far more often."""
    rng, missed = random.Random(3), {"clustered": 0, "plain": 0}
    clusters = [rng.randrange(69) for _ in range(200)]
    for _ in range(400):
        thing = [rng.gauss(0, 1) for _ in range(69)]
        values = [thing[c] + rng.gauss(0, 1) for c in clusters]
        for name, given in (("clustered", clusters), ("plain", None)):
            middle, error = mean_se(values, given)
            missed[name] += abs(middle) > 2 * error
    assert 8 <= missed["clustered"] <= 38 and missed["plain"] > 55


def test_the_interval_of_a_share():
    """Wilson, for 0 of 40: 0 to z^2 / (40 + z^2) = 3.8416 / 43.8416. In 10 clusters of 4, all alike: 0 of 10."""
    assert share([0.0] * 40) == (0.0, 0.0, pytest.approx(3.8416 / 43.8416, rel=1e-9))
    assert share([0.0] * 40, [i // 4 for i in range(40)]) == (0.0, *wilson(0, 10))
    assert share([1.0, 0.0, 1.0, 1.0] * 5) == pytest.approx((0.75, *wilson(15, 20)))
    assert share([1.0] * 12) == (1.0, *wilson(12, 12))
    mixed, about = [1.0] * 8 + [0.0] * 8, [i // 4 for i in range(16)]  # four things, each all right or all wrong
    n = effective_n(mean_se(mixed, about), 16, 4)
    assert n == pytest.approx(16 / 5) and share(mixed, about) == (0.5, *wilson(n / 2, n))


def test_a_win_rate_takes_clusters():
    wins = win_rate([1, 1, 0, 0], [0, 0, 1, 1], "aabb")
    assert wins["win"] == mean_se([1, 1, 0, 0], "aabb") and wins["ties"] == 0


def test_what_prompts_are_about():
    """200 test prompts, 69 subjects; elsewhere a prompt is about itself."""
    prompts = [row["question"] for row in labels.pairs("test_id", 200, seed=0)]
    assert len(set(clusters_of(prompts, gold=True))) == 69 < len(set(clusters_of(prompts, gold=False)))
    turns = lambda text: ({"role": "system", "content": "x"}, {"role": "user", "content": text})
    assert clusters_of([turns("What is the capital of France?"), "hello"], gold=True) == ["France", "hello"]
    one, same, other = clusters_of([turns("a"), turns("a"), turns("b")], gold=False)
    assert one == same != other
