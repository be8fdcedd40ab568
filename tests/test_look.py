"""Every number that `python -m nanopref.judge.look` prints, by hand on a few rows; and that no file makes it crash."""
import json
import math
import statistics
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nanopref.batch import CHOSEN, REJECTED, Example
from nanopref.data.files import Row
from nanopref.errors import UserError
from nanopref.judge import data_set, look
from nanopref.judge.stats import share, wilson
from nanopref.judge.tables import interval
from nanopref.text import encode_response


def row(prompt, chosen, rejected, **more):
    return Row(({"role": "user", "content": prompt},), chosen, rejected, 1, **more)


# Words chosen / rejected: 3/2, 3/2, 2/3, 1/2, 2/1, 1/1. Score gaps: 1, 2, -1, 0, 3, and none.
ROWS = [row("P", "a b c", "a b", preferred=1, scores=(2.0, 1.0)),
        row("P", "a b c", "a b", preferred=1, scores=(3.0, 1.0)),   # repeats the first
        row("P", "a b", "a b c", preferred=1, scores=(1.0, 2.0)),   # contradicts both
        row("Q", "yes", "no no", preferred=2, scores=(1.0, 1.0)),
        row("Q", "no no", "maybe", preferred=1, scores=(4.0, 1.0)),
        row("R", "maybe", "other")]


def test_counts_by_hand():
    """Chosen: abc, ab, yes, no no, maybe. Rejected: ab, abc, no no, maybe, other: four of six are on both sides, but
    maybe not under one prompt. P and Q have several rows."""
    assert data_set.counts(ROWS) == dict(prompts=3, repeated=2, duplicates=1, reversed=3,
                                     texts=6, both_sides=4, same_prompt=3)


def test_counts_of_unpaired_rows():
    """The same answer with both labels contradicts itself; an absent side is no text."""
    rows = [row("P", "a", None), row("P", None, "a"), row("P", None, "b")]
    assert data_set.counts(rows) == dict(prompts=1, repeated=1, duplicates=0, reversed=2,
                                     texts=2, both_sides=1, same_prompt=1)


def test_a_tie_in_length_counts_half():
    """1 1 0 0 1 and a tie: 3.5 of 6."""
    assert data_set.longer([3, 3, 2, 1, 2, 1], [2, 2, 3, 2, 1, 1]) == pytest.approx((3.5 / 6, *wilson(3.5, 6)))


def test_quantile():
    assert [data_set.quantile([5, 1, 3, 2, 4], p) for p in (0, 0.25, 0.5, 1)] == [1, 2, 3, 5]


def test_a_response_counts_once_per_word():
    assert data_set.word_counts(["It’s, it's IT. 4-4", "it"]) == {"it's": 1, "it": 2, "4": 1}


def test_log_odds_by_hand():
    """n1 = 4, n2 = 8, three words: alpha_0 = 3. For a: alpha = 3 * 5 / 12 = 5/4, so 17/4 of 7 against 13/4 of 11: odds
    17/11 and 13/31. For c, which side 1 lacks: alpha = 3 * 4 / 12 = 1, 1 of 7 against 5 of 11: odds 1/6 and 5/6."""
    z = data_set.log_odds(Counter(a=3, b=1), Counter(a=2, b=2, c=4))
    assert z["a"] == pytest.approx((math.log(17 / 11) - math.log(13 / 31)) / math.sqrt(4 / 17 + 4 / 13), rel=1e-12)
    assert z["c"] == pytest.approx(math.log(1 / 5) / math.sqrt(1 + 1 / 5), rel=1e-12)


def test_log_odds_of_equal_and_of_missing_sides():
    """A side ten times as long with the same shares marks nothing."""
    words = Counter(a=3, b=1)
    assert data_set.log_odds(words, Counter(a=30, b=10)) == pytest.approx({"a": 0, "b": 0}, abs=1e-12)
    assert data_set.log_odds(words, Counter()) == {} == data_set.log_odds(Counter(a=3), Counter(a=1))


def test_markers_are_what_was_planted():
    """good0 ... good19 stand on one side only, bad0 ... on the other, is on both; each number is too rare. Bonferroni
    over 41 words: 0.025 / 41. By chance: of 100 coin flips, 50 ± 5 go each way, z is as random as that (seeded)."""
    marked = data_set.markers([row(f"P{i}", f"It{i} is good{i % 20}", f"It{i} is bad{i % 20}") for i in range(2000)])
    assert len(marked["z"]) == 41
    assert marked["threshold"] == pytest.approx(statistics.NormalDist().inv_cdf(1 - 0.025 / 41))
    assert marked["z"]["good7"] > marked["threshold"] and marked["z"]["bad7"] == pytest.approx(-marked["z"]["good7"])
    assert marked["z"]["is"] == pytest.approx(0, abs=1e-12)
    assert marked["above"] == 40 and marked["by_chance"] < 10


def test_response_states_are_means_over_the_own_tokens(tiny_model):
    """Beside its sibling and another pair, or alone: the same to float64 rounding."""
    model = tiny_model().eval()
    examples = [Example(prompt, responses, [CHOSEN, REJECTED]) for prompt, responses in
                (([5, 6, 7], [[8, 9], [10, 11, 12]]), ([5], [[9], [8, 7]]))]
    with torch.no_grad():
        alone = [model(torch.tensor([e.prompt + ids]))[0, len(e.prompt):].mean(0)
                 for e in examples for ids in e.responses]
    assert (data_set.response_states(model, examples) - torch.stack(alone)).abs().max() < 1e-12


def test_pca_by_hand():
    """±3, ±2 and ±1 along three axes, moved by 5: variances 18, 8 and 2, of which two axes hold 26 of 28."""
    axes = torch.diag(torch.tensor([2.0, 1.0, 3.0]))
    points, held = data_set.pca(torch.cat([axes, -axes]) + 5)
    assert held == pytest.approx(26 / 28)
    expected = torch.tensor([[0, 2], [0, 0], [3, 0]])
    assert (points - torch.cat([expected, -expected])).abs().max() < 1e-5  # float32


def test_separable_by_hand():
    """The plane comes from the other prompt: two that agree are told apart, two that do not are both wrong, and a
    difference of 0 is half right. Units do not matter; one prompt leaves nothing to fit."""
    column = lambda *values: torch.tensor(values)[:, None]
    assert data_set.separable(column(1.0, 2.0), ["P", "Q"]) == [1, 1]
    assert data_set.separable(column(1.0, -2.0), ["P", "Q"]) == [0, 0]
    assert sorted(data_set.separable(column(1.0, 1000.0, 0.0), ["P", "Q", "Q"])) == [0.5, 1, 1]
    assert data_set.separable(column(1.0, 1000.0, 0.0), ["P", "Q", "P"]) == [1, 1, 0.5]  # in the order of the pairs
    assert data_set.separable(column(1.0, 2.0), ["P", "P"]) == []


def test_separable_does_not_fit_noise():
    """400 differences without direction in 100 dimensions, which 200 pairs could fit: held out, 0.5 ± 2.5 standard
    errors of 0.025. With half a standard deviation of shift in every dimension nearly all are told apart."""
    x = torch.randn(400, 100, generator=torch.Generator().manual_seed(0))
    prompts = [str(i) for i in range(400)]
    assert abs(statistics.mean(data_set.separable(x, prompts)) - 0.5) < 0.0625
    assert statistics.mean(data_set.separable(x + 0.5, prompts)) > 0.95


def test_the_table_by_hand(tokenizer, tiny_model):
    """Words: 12 and 11 over six rows. First is chosen in 4 of 5. Gaps -1 0 1 2 3: their quartiles are 0, 1 and 2."""
    numbers = data_set.examine(ROWS, "pairs", tiny_model(dtype=torch.float32), tokenizer)
    printed = {line[:30].strip(): line[30:] for line in look.table(numbers).splitlines()}
    tokens = [[len(encode_response(tokenizer, getattr(r, side))) for r in ROWS] for side in ("chosen", "rejected")]
    assert printed["pairs"] == "6" and printed["prompts"] == "3, of which 2 in several rows"
    assert printed["rows that repeat another"] == "1 (16.7%)" and printed["rows that contradict another"] == "3 (50.0%)"
    assert printed["texts on both sides"] == "4 of 6; 3 under one prompt"
    assert printed["mean words"] == "chosen 2.0 (median 2), rejected 1.8 (median 2)"
    assert printed["mean tokens"] == ", ".join(f"{name} {sum(n) / 6:.1f} (median {statistics.median(n):g})"
                                               for name, n in zip(("chosen", "rejected"), tokens))
    assert printed["longer is chosen (words)"] == interval(share([1, 1, 0, 0, 1, 0.5], "PPPQQR"))
    assert printed["first is chosen"] == interval(share([1, 1, 1, 0, 1], "PPPQQ"))
    assert printed["score, chosen - rejected"] == "median 1.00, middle half 0.00 to 2.00; negative 1, zero 1"
    assert printed["in the map"] == "6 rows"
    assert numbers["map"]["chosen"].tolist() == [True, False] * 6 and len(numbers["map"]["raw"][0]) == 12
    within = numbers["map"]["within"][0]
    assert (within[::2] + within[1::2]).abs().max() < 1e-5  # the two of a pair lie opposite each other; float32


def test_the_table_says_that_the_middle_of_a_ranking_is_left_out(tokenizer, tiny_model):
    rows = [row("P", "best", "worst", between=("good", "bad")), row("Q", "first", "last", between=("second",))]
    numbers = data_set.examine(rows, "pairs", tiny_model(dtype=torch.float32), tokenizer)
    assert "best and worst of rankings    the 3 responses between are left out" in look.table(numbers)
    rows = [replace(r, between=()) for r in rows]
    assert "rankings" not in look.table(data_set.examine(rows, "pairs", tiny_model(dtype=torch.float32), tokenizer))


def test_few_words_by_chance_are_a_fraction_and_none_not_0():
    """Two words in 30 rows, always on one side each: 5 % of 2 is 0.1."""
    rows = [row(f"P{i}", "yes", "no") for i in range(30)]
    numbers = dict(kind="pairs", counts=data_set.counts(rows), shares={}, gaps=[], map={},
                   markers=data_set.markers(rows))
    told = next(line for line in look.findings(numbers) if line.startswith("|z| > 1.96"))
    assert "By chance: 5 %, 0.1, if words were independent; " in told
    numbers["markers"]["by_chance"] = 0
    assert "; none when" in " ".join(look.findings(numbers))


def test_findings_say_which_way(tokenizer, tiny_model):
    """Chosen always longer and always second, with a score that always contradicts."""
    rows = [row(f"P{i}", "a good long one", "bad", preferred=2, scores=(0.0, 1.0)) for i in range(30)]
    told = " ".join(look.findings(data_set.examine(rows, "pairs", tiny_model(dtype=torch.float32), tokenizer)))
    assert "The longer response is chosen in 100%" in told
    assert "the second response of the file is chosen in 100%" in told
    assert "In 100% of the pairs the file's own scores" in told and "repeat" not in told
    swapped = [replace(r, chosen=r.rejected, rejected=r.chosen, preferred=None, scores=None) for r in rows]
    told = " ".join(look.findings(data_set.examine(swapped, "pairs", tiny_model(dtype=torch.float32), tokenizer)))
    assert "The shorter response is chosen in 100%" in told and "does not record" in told and "scores" not in told
    assert "Words that mark chosen" in told and ": 1, above all bad." in told


FILES = {  # what is in the file, and what of the figure's findings must be said
    "pairs": ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "pairs                         1\n"),
    "unpaired": ([{"prompt": "a", "completion": "b c", "label": n > 0} for n in range(4)],
                 "labels are true               0.75"),
    "one": ([{"prompt": "a", "completion": "b", "label": True}], "Left out, as these rows are unpaired"),
    "told": ([{"prompt": "a", "completion": "b"}] * 2, "Left out, as these rows are demonstrations"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_smallest_files(name, start, tmp_path, capsys):
    rows, expected = FILES[name]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    look.main([str(file), "--model", str(start), "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert expected in out and (tmp_path / "look" / f"{name}.png").exists() and f"look/{name}.png" in out


def test_a_whole_file_and_its_first_rows(pairs, start, tmp_path, capsys):
    """Chosen begins with it, rejected with i do: both are seen; an untrained model tells "It" from "I" as well."""
    look.main([str(pairs), "--model", str(start), "--out", str(tmp_path), "--rows", "50"])
    out = capsys.readouterr().out
    assert "60 of 60 rows kept" in out and "pairs                         50\n" in out
    assert "a plane tells them apart      1.00" in out and "Words that mark chosen" in out


@pytest.mark.parametrize("arguments, expected", [
    (["no-such-file.jsonl"], "no such file"),
    (["world", "--rows", "0"], "--rows must be at least 1"),
    (["{pairs}", "--axis", "safer"], "--axis safer is for PKU"),
])
def test_mistakes_are_user_errors(arguments, expected, pairs, tmp_path):
    with pytest.raises(UserError, match=expected):
        look.main([argument.format(pairs=pairs) for argument in arguments] + ["--out", str(tmp_path)])
