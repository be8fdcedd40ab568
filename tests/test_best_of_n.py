"""Best of n: expectations against every subset, the KL against policies whose best of n is known, peaks by hand."""
import itertools
import math

import pytest
import torch

from nanopref.findings import best_of_n
from nanopref.findings.best_of_n import best_of, curves, draw, kl, learned_rewards, places, summary, table
from nanopref.findings.common import standardised


def over_all_subsets(learned, values, n):
    """The mean over all subsets of n of the value at the largest learned reward; tied ones are picked by lot."""
    picked = []
    for subset in itertools.combinations(range(len(learned)), n):
        top = max(learned[i] for i in subset)
        tied = [values[i] for i in subset if learned[i] == top]
        picked.append(sum(tied) / len(tied))
    return sum(picked) / len(picked)


@pytest.mark.parametrize("learned", [[3.0, -1, 2, 7, 0.5, 1, -4], [1.0, 2, 2, 0, 2, 0, 1], [5.0] * 7])
def test_expectation_is_the_mean_over_all_subsets(learned):
    """Without ties, with them, with nothing else; sums of at most 35 terms in float64."""
    values, ns = [0.3, -2.0, 1.7, -0.4, 5.0, 2.2, -1.1], tuple(range(1, 8))
    expected = best_of(torch.tensor(learned), torch.tensor(values, dtype=torch.float64), ns)
    assert expected.tolist() == pytest.approx([over_all_subsets(learned, values, n) for n in ns], abs=1e-13)


def test_places_are_probabilities_at_full_size():
    """C(256, 128) has 76 digits: the ratios are taken of whole numbers. n = N picks the largest, n = 1 anything."""
    ns = (1, 2, 16, 128, 256)
    chances = places(256, ns)
    assert chances.sum(1).tolist() == pytest.approx([1] * 5, abs=1e-12) and chances[4, 255] == 1
    assert chances[0].tolist() == [1 / 256] * 256
    assert chances[1, 255].item() == pytest.approx(2 / 256)  # the largest is in a pair: 255 pairs of 256 * 255 / 2


def test_kl_by_hand_and_as_a_bound():
    """log 2 - 1/2, log 4 - 3/4. Best of 2 of a fair coin's sides is the better one with 3/4:
    KL = 3/4 log(3/2) + 1/4 log(1/2) = 0.131, below 0.193, as sides repeat; with 1,000 sides almost none do."""
    assert kl(1) == 0 and kl(2) == pytest.approx(math.log(2) - 0.5) and kl(4) == pytest.approx(math.log(4) - 0.75)
    exact = lambda sides: sum(p * math.log(p * sides) for p in ((2 * i + 1) / sides ** 2 for i in range(sides)))
    assert exact(2) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert exact(2) < kl(2) - 0.06 and exact(1000) == pytest.approx(kl(2), abs=1e-5)  # a sum for an integral


def test_neither_unit_nor_a_prompts_origin_matters():
    rewards = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = 5 * rewards + torch.tensor([[1.0], [-2.0], [7.0]])
    plain = standardised(rewards)
    assert (standardised(moved) - plain).abs().max() < 1e-12
    assert plain.mean(-1).abs().max() < 1e-12 and plain.square().mean((-2, -1)).tolist() == pytest.approx([1, 1])


def test_curves_average_over_judges_each_of_which_picks_by_itself():
    """One prompt, answers of gold 1 and 5. One judge picks 5, the other 1: best of 1 and of 2 are 3 on average. The
    mean of the two, standardised from scales 10 and 1, would be a tie. Of two answers one is a deviation above."""
    judges, gold = torch.tensor([[[0.0, 10.0]], [[1.0, 0.0]]]), torch.tensor([[1.0, 5.0]])
    assert curves(judges, gold, (1, 2)).tolist() == [[[3, 3]], [[0, 1]]]
    assert curves(judges[:1], gold, (1, 2))[0].tolist() == [[3, 5]]
    assert standardised(judges).mean(0).tolist() == [[0, 0]]


def test_a_judge_of_constant_rewards_picks_by_lot():
    """No judge is a reason to stop: the mean of gold for every n, and nothing learned."""
    assert curves(torch.full((1, 1, 2), 0.7), torch.tensor([[1.0, 5.0]]), (1, 2)).tolist() == [[[3, 3]], [[0, 0]]]


def curves_by_hand():
    """Three prompts, n = 1, 2, 4. Gold means 1, 3, 2; falls 2, 1, 0: mean 1, variance 1, standard error 0.58."""
    gold = torch.tensor([[1.0, 4, 2], [1, 3, 2], [1, 2, 2]])
    return torch.stack([gold, torch.tensor([[0.0, 1, 2], [0, 1, 3], [0, 1, 4]])])


def test_summary_by_hand():
    by_hand = {"peak": 3, "last": 2, "n": 2, "kl": math.log(2) - 0.5, "fall": 1, "error": 1 / math.sqrt(3),
               "down": False, "learned": 3}
    both = curves_by_hand()
    assert summary(both, (1, 2, 4)) == pytest.approx(by_hand)  # 1 < 2 * 0.58
    both[0, :, 1] += 0.2
    assert summary(both, (1, 2, 4))["down"]  # 1.2 > 2 * 0.58: adding to all leaves the error
    unknown = summary(both, (1, 2, 4), ["France"] * both.shape[1])  # all about one thing: no error, no verdict
    assert unknown["error"] is None and not unknown["down"]
    assert " ? " in table([{("-", "gold"): both}], (1, 2, 4), ["France"] * both.shape[1])
    rising = summary(both.sort(-1).values, (1, 2, 4))
    assert rising["n"] == 4 and rising["fall"] == 0 and not rising["down"]  # 0 > 0 is no fall


def test_table_says_under_which_reward_models_gold_turned_down():
    """The two without training pairs, gold itself and the untrained head, do not count."""
    up, down = curves_by_hand(), curves_by_hand()
    down[0, :, 1] += 0.2
    shown = table([{("-", "gold"): down, (375, "mean"): seed} for seed in (up, down)], (1, 2, 4))
    assert "turns down, beyond the noise, under: 375 mean (1 of 2 seeds)." in shown
    assert "3.10 ± 0.14" in shown and "2 2" in shown  # 3 and 3.2 at the peak; its n on both seeds
    assert "no over-optimisation was found" in table([{("-", "gold"): up}], (1, 2, 4))


def test_samples_come_in_order_and_are_scored_once(start, monkeypatch):
    """Copies of an answer tie exactly, at any place in the batch; the reward here is the sum of its ids."""
    monkeypatch.setattr(best_of_n, "MAX_NEW_TOKENS", 6)  # an untrained model does not stop by itself
    drawn = draw(start, ["What is tea 1?", "What is salt 2?"], 5, seed=0)
    assert [prompt for prompt, _ in drawn] == ["What is tea 1?"] * 5 + ["What is salt 2?"] * 5
    assert len({ids for _, ids in drawn}) > 2  # at temperature 1
    scored = []
    monkeypatch.setattr(best_of_n, "score_answers", lambda model, tokenizer, asked: (scored.extend(asked) or [
        [float(sum(ids))] for _, (ids,) in asked], 0))
    samples = [("a", (7, 8)), ("a", (9,)), ("a", (7, 8)), ("b", (7, 8)), ("b", (1,)), ("b", (1,))]
    assert learned_rewards(start, samples, 3).tolist() == [[15, 9, 15], [15, 1, 1]]
    assert len(scored) == 4
