"""A reward model's report: every number by hand on three pairs."""
import json
import math
from math import log, sqrt
from types import SimpleNamespace

import pytest
import torch

from nanopref.errors import UserError
from nanopref.judge import plots, plots_rm
from nanopref.judge.in_words import read_rm
from nanopref.judge.measures_rm import (baselines, calibration, calibration_error, correlation, expected_accuracy,
                                        interval, length_beyond_gold, measure)
from nanopref.judge.report_rm import accuracies, calibration_table, extremes, mistakes, report_rm
from nanopref.judge.stats import wilson
from nanopref.run.config import check_reward_options
from nanopref.world import labels

L = log(3)  # a margin of L is a preference probability of 3/4; of 3 L, 27/28
sigmoid = lambda x: 1 / (1 + math.exp(-x))


def pair(prompt, chosen, rejected, rewards, lengths, gold=None):
    scored = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "reward_chosen": rewards[0],
             "reward_rejected": rewards[1], "length_chosen": lengths[0], "length_rejected": lengths[1]}
    return scored if gold is None else {**scored, "gold_chosen": gold[0], "gold_rejected": gold[1]}


# Differences chosen - rejected of reward, gold and length: s = (1, -1, 3) L, g = (2, -1, 2), l = (2, 2, 1). In the
# second pair the label contradicts gold, and the model contradicts the label.
THREE = [pair("Pick a lock?", "Sorry, I cannot help.", "Do it.", (L, 0), (4, 2), (2, 0)),
         pair("What is France's capital?", "Paris is fine.", "I won't say.", (0, L), (5, 3), (0, 1)),
         pair("2 plus 2?", "Yes, it is four.", "It is five.", (2 * L, -L), (4, 3), (1, -1))]


def test_measures_by_hand():
    """Margins (1, -1, 3) L: mean L, squared deviations 0, 4, 4, variance 4 L^2, error 2 L / sqrt 3. Two of three are
    right: deviations 1/3, 2/3, 1/3, variance 1/3, error 1/3. Rewards L, 0, 0, L, 2 L, -L: mean L / 2, squares
    7 - 6 / 4 = 5.5 over 5. -log of 3/4, 1/4, 27/28. Confidence 3/4, 3/4, 27/28 minus 1, 0, 1: -1/4, 3/4, -1/28,
    mean 13/84."""
    measures = measure(THREE)
    nll = [log(4 / 3), log(4), log(28 / 27)]
    mean = log(448 / 81) / 3  # 4/3 times 4 times 28/27
    surplus = [-1 / 4, 3 / 4, -1 / 28]
    error = lambda values, mean: sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
    by_hand = {"n_pairs": [3, 0], "n_clusters": [3, 0], "accuracy": [2 / 3, 1 / 3], "reward_mean": [L / 2, 0],
               "reward_std": [L * sqrt(1.1), 0], "margin": [L, 2 * L / sqrt(3)], "nll": [mean, error(nll, mean)],
               "calibration_error": [5 / 28, 0],
               "overconfidence": [13 / 84, error(surplus, 13 / 84)]}
    for name, value in by_hand.items():
        assert measures[name] == pytest.approx(value, rel=0, abs=1e-12), name
    assert set(measures) == {*by_hand, "expected_accuracy", "corr_length", "corr_gold", "length_beyond_gold"}


def test_calibration_by_hand():
    """Confidence 3/4 twice, once right: (3/4, 1/2, 2). 27/28 once, right. Error: 2/3 of 1/4 + 1/3 of 1/28 = 15/84.
    In two bins, 50 to 75 % and 75 to 100 %, confidences of 0.9 and 1 both belong to the last, a tie is half right."""
    (said, seen, n), (said_2, seen_2, n_2) = calibration(THREE)
    assert (said, seen, n) == (pytest.approx(3 / 4), 0.5, 2) and (said_2, seen_2, n_2) == (pytest.approx(27 / 28), 1, 1)
    assert calibration_error(THREE) == pytest.approx(15 / 84, rel=0, abs=1e-12)
    ends = [pair("", "", "", rewards, (1, 1)) for rewards in ((7, 7), (100, 0), (2 * L, 0))]
    tie, sure = calibration(ends, bins=2)
    assert tie == (0.5, 0.5, 1) and sure == (pytest.approx(0.95), 1, 2)
    assert calibration_error(ends, bins=2) == pytest.approx(2 / 3 * 0.05)


def test_correlation_with_length_by_hand():
    """Rewards minus their mean, in L: (.5 -.5) (-.5 .5) (1.5 -1.5), squares 5.5; lengths minus 3.5: (.5 -1.5) (1.5 -.5)
    (.5 -.5), squares 5.5; products (.25 .75) (-.75 -.25) (.75 .75), sum 1.5: r = 3/11. Influence of a response, both
    divided by their mean square 5.5 / 6: 12/11 (x y - r (x^2 + y^2) / 2); the mean over each pair: 12/11 of
    13/44, -31/44, 18/44."""
    error = 12 / 11 / 44 * sqrt((13 ** 2 + 31 ** 2 + 18 ** 2) / 2 / 3)
    assert measure(THREE)["corr_length"] == pytest.approx([3 / 11, error], rel=0, abs=1e-12)


def test_correlation_with_gold_by_hand():
    """s g = (2, 1, 6), sum 9; s s = 11, g g = 9: r = 9 / sqrt 99 = 3 / sqrt 11. Influence, in 1 / sqrt 11:
    s g - 1.5 (s^2 3/11 + g^2 / 3) = -9/22, 2/22, 7/22. What is added to both rewards of a prompt changes nothing."""
    error = sqrt((81 + 4 + 49) / 2 / 3) / 22 / sqrt(11)
    assert measure(THREE)["corr_gold"] == pytest.approx([3 / sqrt(11), error], rel=0, abs=1e-12)
    moved = [{**p, "reward_chosen": p["reward_chosen"] + c, "reward_rejected": p["reward_rejected"] + c}
             for p, c in zip(THREE, (5, -7, 1))]
    assert measure(moved)["corr_gold"] == pytest.approx([3 / sqrt(11), error], rel=0, abs=1e-12)
    assert abs(measure(moved)["corr_length"][0] - 3 / 11) > 0.1  # that one does mix prompts


def test_length_beyond_gold_by_hand():
    """(s g) = 3 / sqrt 11; s l = 2 - 2 + 3, l l = 9: (s l) = 1 / sqrt 11; g l = 4 - 2 + 2: r = 4/9; 1 - r^2 = 65/81.
    a = (3 - 4/9) 81/65 = 207/65, b = (1 - 12/9) 81/65 = -27/65, both in 1 / sqrt 11, and a - r b = 219/65.
    Influences: of (s g) (-27, 6, 21) / 66, of (s l) (79, -185, 106) / 66, over sqrt 11; of (g l) (20, -28, 8) / 27."""
    influence = [81 / 65 * (sl / 66 - 4 / 9 * sg / 66 - 219 / 65 * gl / 27)
                 for sg, sl, gl in zip((-27, 6, 21), (79, -185, 106), (20, -28, 8))]
    by_hand = [-27 / 65 / sqrt(11), sqrt(sum(i * i for i in influence) / 2 / 3) / sqrt(11)]
    assert measure(THREE)["length_beyond_gold"] == pytest.approx(by_hand, rel=0, abs=1e-12)


def test_it_is_least_squares_and_its_error_what_moves_when_a_pair_counts_more():
    """b against torch's solver on weighted pairs. The influence of a pair is the derivative of b by its weight where
    all weigh 1 / n, as b does not change with their sum. Central differences of step 1e-5 are good to some 1e-9."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 20, 1, generator=generator, dtype=torch.float64)
    base[0] += base[1] + 0.5 * base[2]
    base[2] += 0.4 * base[1]
    sides = [torch.cat([x, -x], 1) for x in base]

    def b(weight):
        s, g, l = (x[:, 0] / (weight * x[:, 0] ** 2).sum().sqrt() for x in base)
        return torch.linalg.lstsq(torch.stack([g, l], 1) * weight[:, None].sqrt(), s * weight.sqrt()).solution[1].item()

    equal, influence = torch.full((20,), 1 / 20, dtype=torch.float64), []
    for step in 1e-5 * torch.eye(20, dtype=torch.float64):
        influence.append((b(equal + step) - b(equal - step)) / 2e-5)
    by_hand = [b(equal), sqrt(sum(i * i for i in influence) / 19 / 20)]
    assert length_beyond_gold(*sides) == pytest.approx(by_hand, rel=0, abs=1e-8)


def test_the_gold_reward_itself_pays_for_no_length():
    perfect = [{**p, "reward_chosen": p["gold_chosen"], "reward_rejected": p["gold_rejected"]} for p in THREE]
    measures = measure(perfect)
    assert measures["corr_gold"] == pytest.approx([1, 0], rel=0, abs=1e-12)
    assert measures["length_beyond_gold"] == pytest.approx([0, 0], rel=0, abs=1e-12)


def test_expected_accuracy_by_hand():
    """Gold differences 2, -1, 2. The model chooses as gold does: P = sigmoid 2, sigmoid 1, sigmoid 2, the best
    possible; the other way round 1 minus each; a tie 1/2."""
    values = [sigmoid(2), sigmoid(1), sigmoid(2)]
    mean = sum(values) / 3
    by_hand = [mean, sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)]
    assert expected_accuracy(THREE) == pytest.approx(by_hand, abs=1e-12) == measure(THREE)["expected_accuracy"]
    rows = [{"gold_1": p["gold_chosen"], "gold_2": p["gold_rejected"]} for p in THREE]
    assert mean == pytest.approx(labels.best_accuracy(rows), abs=1e-12)
    turned = [{**p, "reward_chosen": p["reward_rejected"], "reward_rejected": p["reward_chosen"]} for p in THREE]
    assert expected_accuracy(turned)[0] == pytest.approx(1 - mean, abs=1e-12)
    tied = [{**p, "reward_chosen": 0.0, "reward_rejected": 0.0} for p in THREE]
    assert expected_accuracy(tied) == [0.5, 0] and measure(tied)["accuracy"][0] == 0  # there a tie is wrong


def test_trivial_judges_by_hand():
    """Words 4 : 2, 3 : 3, 4 : 3: longer wins 1 + 1/2 + 1 of 3. Refusing words 2 : 0 (sorry, cannot), 0 : 1 (won't),
    0 : 0: fewer win 0 + 1 + 1/2. Wilson at 5/6 and n = 3, z = 1.96: middle 5/6 + 3.8416 / 6, width
    1.96 sqrt(5/36/3 + 3.8416/36), both over 1 + 3.8416 / 3."""
    shares = baselines([(p["chosen"], p["rejected"]) for p in THREE])
    assert [value[0] for value in shares.values()] == pytest.approx([5 / 6, 1 / 6, 1 / 2])
    middle, width = 5 / 6 + 3.8416 / 6, 1.96 * sqrt(5 / 36 / 3 + 3.8416 / 36)
    low, high = (middle - width) / (1 + 3.8416 / 3), (middle + width) / (1 + 3.8416 / 3)
    assert shares["longer wins"] == pytest.approx([5 / 6, low, high], rel=0, abs=1e-12)
    assert shares["shorter wins"] == pytest.approx([1 / 6, 1 - high, 1 - low], rel=0, abs=1e-12)  # the mirror image


def test_refusing_words_are_counted_as_words():
    """Scants and canteen refuse nothing; both apostrophes of can't do, and capitals."""
    rows = [("He scants the canteen.", "No."), ("I can’t.", "I can't."), ("I WILL NOT.", "It is illegal, sorry.")]
    assert baselines(rows)["fewer words of refusal"][0] == pytest.approx((0.5 + 0.5 + 1) / 3)


@pytest.mark.parametrize("pairs", [THREE[:1], THREE[:2]])
def test_of_one_or_two_pairs_no_correlation_is_told(pairs):
    """Two points lie on one line whatever they are."""
    measures = measure(pairs)
    assert not {"corr_length", "corr_gold", "length_beyond_gold"} & set(measures) and measures["margin"][0] in (L, 0)
    assert (measures["accuracy"][1] is None) == (len(pairs) == 1)


def test_what_is_constant_correlates_with_nothing():
    """The mean of six times 0.1 is not 0.1 in float64: what is left is no correlation."""
    same = [{**p, "reward_chosen": 0.1, "reward_rejected": 0.1} for p in THREE]
    measures = measure(same)
    assert not {"corr_length", "corr_gold", "length_beyond_gold"} & set(measures)
    assert measures["nll"] == pytest.approx([log(2), 0]) and measures["accuracy"] == [0, 0]
    assert measures["reward_std"][0] < 1e-9
    assert measures["calibration_error"][0] == 0  # it says 1/2 and a tie is half right
    x = torch.tensor([[1.0, -1], [2, -2], [0, 0]], dtype=torch.float64)
    assert length_beyond_gold(x, x, 3 * x) is None and correlation(x, 3 * x) == pytest.approx([1, 0])


def test_without_gold_its_measures_are_absent():
    measures = measure([{k: v for k, v in p.items() if "gold" not in k} for p in THREE])
    assert "corr_length" in measures and not {"expected_accuracy", "corr_gold", "length_beyond_gold"} & set(measures)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error(bad):
    with pytest.raises(UserError, match="no finite numbers: train with a lower --lr"):
        measure([THREE[0], {**THREE[1], "reward_rejected": bad}])


def test_extremes_in_text():
    """Rewards 2.20, 1.10, 1.10, 0, 0, -1.10: two of each end, ties in the order of the pairs; the extreme first."""
    assert extremes(THREE, "test", n=2).splitlines() == [
        "Highest rewards on test", "> 2 plus 2?", "  chosen   +2.20 [gold +1.0] Yes, it is four.",
        "> Pick a lock?", "  chosen   +1.10 [gold +2.0] Sorry, I cannot help.",
        "Lowest rewards on test", "> 2 plus 2?", "  rejected -1.10 [gold -1.0] It is five.",
        "> What is France's capital?", "  chosen   +0.00 [gold +0.0] Paris is fine."]
    assert extremes(THREE[:1] * 9, "test").count(">") == 2  # the same answer is told once, and a pair has no third


def test_mistakes_in_text():
    assert mistakes(THREE, "test").splitlines() == [
        "Worst of 1 mistakes on test (in 1 of them gold contradicts the label)", "> What is France's capital?",
        "  chosen   +0.00 [gold +0.0] Paris is fine.", "  rejected +1.10 [gold +1.0] I won't say.",
        "  the label is noise: gold says otherwise"]
    assert mistakes(THREE[:1], "test") == "No pair of test is ranked the wrong way round."
    long = pair("begin " + "x " * 200 + "end", "\n".join("a" * 400), "b" * 301, (-1, 1), (1, 1), (1, 1))
    worse = pair("p", "c", "r", (2, 8), (1, 1), (2, 1))
    lines = mistakes([long, THREE[1], worse], "test", n=2).splitlines()
    assert "Worst of 3 mistakes on test (in 1 " in lines[0]
    assert lines[1:4:2] == ["> p", "  rejected +8.00 [gold +1.0] r"]
    assert lines[4].startswith("> …") and lines[4].endswith(" x end") and len(lines[4]) == len("> ") + 200
    assert lines[5].count("a") == 150 and lines[6].endswith("bbb…") and len(lines[6].split()[-1]) == 300
    assert lines[7] == "  the label is a coin's: gold does not prefer either"


def config(**options):
    return SimpleNamespace(loss="rm", stage="rm", epochs=1, batch_size=32, knobs=check_reward_options(options), data="world", seed=0)


def reported(folder, scored, best, accuracy=0.6):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": i, "loss": 0.6, "lr": 1e-4, "rewards/accuracies": accuracy}) + "\n" for i in range(20)))
    report_rm(config(), folder, scored, SimpleNamespace(best_accuracy=best, gold=bool(best)))
    return json.loads((folder / "report.json").read_text())


def test_the_report_as_printed_and_kept(tmp_path, capsys):
    """The numbers above, rounded. Before: a head that gives every answer 0. Wilson of 2 in 3: (2/3 + 3.8416 / 6 ±
    1.96 sqrt(2/27 + 3.8416 / 36)) / (1 + 3.8416 / 3) = 20.8 % to 93.9 %; of 0 in 3 up to 3.8416 / 6.8416 = 56.2 %."""
    before = [{**p, "reward_chosen": 0.0, "reward_rejected": 0.0} for p in THREE]
    kept = reported(tmp_path, {"test_id": {"before": before, "after": THREE}}, {"test_id": 0.83})
    text = capsys.readouterr().out
    cells = {line[:20].strip(): line[20:].split() for line in text.split("±  is")[0].splitlines()[:16]}
    assert cells["pair accuracy"] == "0.00 0.67 ± 0.33".split()
    assert cells["expected accuracy"] == "0.50 0.83 ± 0.05".split()
    assert cells["reward mean"] == ["0.00", "0.55"] and cells["reward std"] == ["0.00", "1.15"]
    assert cells["margin"] == "0.00 1.10 ± 1.27".split() and cells["loss (nats)"] == "0.69 0.57 ± 0.41".split()
    assert cells["calibration error"] == ["0.00", "0.18"] and cells["overconfidence"] == "0.00 0.15 ± 0.30".split()
    assert cells["corr. with gold"] == "- 0.90 ± 0.06".split()
    assert cells["corr. with length"] == "- 0.27 ± 0.39".split()
    assert cells["length beyond gold"] == "- -0.13 ± 0.21".split()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in ("reward model, trained 66.7% (20.8% to 93.9%)", "untrained head 0.0% (0.0% to 56.2%)",
                 "longer wins 83.3% (31.0% to 98.2%)", "best possible 83.0%", "test_id said 75% 96%", "seen 50% 100%",
                 "pairs 2 1"):
        assert line in lines, line
    assert extremes(THREE, "test_id") in text and mistakes(THREE, "test_id") in text
    assert "On test_id nothing shows that was learnt: 66.7% of 3 pairs, 95 % interval 20.8% to 93.9%" in text
    assert kept["measures"]["test_id"]["after"]["margin"] == pytest.approx([L, 2 * L / sqrt(3)])
    assert kept["best_accuracy"] == {"test_id": 0.83} and kept["last_step"]["step"] == 19
    assert kept["config"] == {"loss": "rm", "knobs": check_reward_options({}), "data": "world", "seed": 0}
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").open()]
    assert rows == [{"split": "test_id", "who": "before", **p} for p in before] + [
        {"split": "test_id", "who": "after", **p} for p in THREE]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG") and str(tmp_path / "figure.png") in text


def test_a_report_without_gold_and_with_a_single_pair(tmp_path, capsys):
    one = [{k: v for k, v in THREE[0].items() if "gold" not in k}]
    twelve = [{**one[0], "prompt": f"{i}"} for i in range(12)]  # of 12 in 12 the interval ends below 1, by a rounding error
    kept = reported(tmp_path, {"test_id": {"before": one, "after": one}, "b": {"before": twelve, "after": twelve}}, {})
    text = capsys.readouterr().out.split("figure:")[0]
    assert "gold" not in text and "best possible" not in text.lower()
    assert "corr. with length - - 1.00 1.00" in " ".join(text.split())  # one pair has none
    assert kept["measures"]["test_id"]["after"]["accuracy"] == [1, None]  # of one pair nobody knows


def many(n, right, margin, lengths=(1, 1), texts=("a", "b")):
    """n pairs, the first `right` of them ranked right, each by `margin`; lengths and texts of chosen and rejected."""
    return [pair(f"p{i}", *texts, (margin, 0) if i < right else (0, margin), lengths) for i in range(n)]


def read(pairs, trained=0.6, best=None, is_balanced=False, epochs=2):
    trivial = {"test": baselines([(p["chosen"], p["rejected"]) for p in pairs])}
    measures, run = {"test": {"after": measure(pairs)}}, config(balance_length=is_balanced)
    run.epochs, run.batch_size = epochs, 6400
    return " ".join(read_rm([{"rewards/accuracies": trained}], measures, trivial, best or {}, run))


def test_the_run_is_read():
    """100 pairs, of which so many are ranked right: 50, 70 and 30 are a coin, more and less than one (Wilson 40 to 60,
    60 to 78, 22 to 40 %). A margin of log(7/3) says 70 %, of 2 88 %, of 0.1 52 %."""
    honest = log(7 / 3)
    assert "nothing shows that was learnt" in read(many(100, 50, 0.1))
    assert "wrong way round" in read(many(100, 30, 0.1))
    assert "every trivial judge" in read(many(100, 70, honest)) and "as it should be" in read(many(100, 70, honest))
    assert "not clearly the trivial judge \"longer wins\" (100.0%)" in read(many(100, 70, honest, texts=("a a", "b")))
    assert "the reverse of \"fewer words of refusal\"" in read(many(100, 70, honest, texts=("cannot", "b")))
    assert "is overconfident" in read(many(100, 70, 2)) and "is underconfident" in read(many(100, 70, 0.1))
    assert "worse than none: a loss of 2.70 nats" in read(many(100, 70, 9.0))  # 30 pairs cost 9.0, 70 nothing
    assert "learnt by heart" not in read(many(100, 70, honest), trained=0.75)
    assert "new ones clearly less often" in read(many(100, 70, honest), trained=0.85)  # 0.78 + 0.05 is below it
    assert "more than any judge could" in read(many(100, 70, honest), trained=0.85, best={"test": 0.81})
    assert "learnt by heart" not in read(many(100, 70, honest), trained=0.85, epochs=1)  # ranked before trained on
    balanced = read(many(100, 70, honest), trained=0.85, best={"test": 0.81}, is_balanced=True)
    assert "more than any judge could" not in balanced  # of labels drawn again nobody has counted the noise


@pytest.mark.parametrize("n", [1, 29])
def test_of_a_few_pairs_no_confidence_is_told(n):
    """All right at 88 %: their error would be 0, as they are alike, and the claim underconfidence. From 30 on it is
    made, as 0.88^30 = 2 %."""
    assert "confiden" not in read(many(n, n, 2)) and "its probabilities" not in read(many(n, 0, 9.0))
    assert "is underconfident" in read(many(30, 30, 2))


def test_the_figure_claims_noise_only_of_pairs_whose_noise_is_known(tmp_path, monkeypatch):
    titles, metrics = [], [{"step": 0, "loss": 0.6, "lr": 1e-4, "rewards/accuracies": 0.9}]
    monkeypatch.setattr(plots_rm, "save", lambda fig, path: titles.append(fig.axes[1].get_title()))
    for best, options in (({"a": 0.8}, {}), ({"a": 0.8}, {"balance_length": True}), ({}, {})):
        plots_rm.reward_figure(metrics, {"a": {"before": THREE, "after": THREE}}, best, config(**options), tmp_path)
    plots.plt.close("all")
    assert ["label noise" in title for title in titles] == [True, False, False]
    assert "the dashed line is not theirs" in titles[1] and "learnt by heart" in titles[2]


def test_a_figure_is_saved_in_one_way(tmp_path, capsys):
    fig, axes = plots.plt.subplots(1, 2)
    path = tmp_path / "new" / "figure.png"
    plots.save(fig, path)
    assert path.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == f"figure: {path}\n"
    for ax in axes:
        assert [ax.spines[side].get_visible() for side in ("top", "right", "left")] == [False, False, True]
    assert not plots.plt.fignum_exists(fig.number)  # or a hundred figures stay in memory


def test_length_beyond_gold_is_read():
    """Gold plus or minus half as much of length: bias, 0.5 / 1.1 of the reward's spread. Gold plus noise: none."""
    generator = torch.Generator().manual_seed(0)
    gold, length, noise = torch.randn(3, 200, generator=generator)
    build = lambda reward: [pair(f"p{i}", "a", "b", (r, 0), (round(9 * l) + 60, 60), (g, 0)) for i, (r, l, g) in
                            enumerate(zip(reward.tolist(), length.tolist(), gold.tolist()))]
    for reward, expected in ((gold + 0.5 * length, "pays for length beyond"), (gold - 0.5 * length, "pays for brevity"),
                             (gold + 0.1 * noise, "does not follow length")):
        pairs = build(reward + 1)  # more often right than wrong, so that something was learnt
        assert expected in read(pairs, best={"test": 0.8})


def test_interval_counts_pairs():
    """Three pairs about three things are three; the same three about one thing or two tell less."""
    alone = interval(measure(THREE))
    assert alone == pytest.approx(wilson(2, 3), abs=1e-9)
    together = interval(measure(THREE * 2))
    apart = interval(measure([{**p, "prompt": str(i)} for i, p in enumerate(THREE * 2)]))
    assert apart == pytest.approx(wilson(4, 6), abs=1e-9) and together == pytest.approx(wilson(2.5 * 2 / 3, 2.5), abs=0.2)


def test_tables_put_splits_beside_each_other():
    three, one = measure(THREE), measure(THREE[:1])
    measures = {"a": {"before": three, "after": three}, "b": {"before": one, "after": one}}
    trivial = {name: baselines([("x y", "z")]) for name in measures}
    lines = accuracies(measures, trivial, {"a": 0.8, "b": 0.9}).splitlines()
    assert lines[1].split() == ["a,", "3", "pairs", "b,", "1", "pairs"] and lines[-2].split()[2:] == ["80.0%", "90.0%"]
    assert lines[-1].startswith("A tie of the reward model is wrong") and "counts 1/2" in lines[-1]
    table = calibration_table({"a": THREE, "b": THREE[:1]}).splitlines()
    assert [line.split()[-1] for line in table[1:]] == ["96%", "100%", "1", "75%", "100%", "1"]
