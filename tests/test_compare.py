"""Two policies under two judges: every number by hand on three prompts, every conclusion in words, every mistake."""
import json
import math

import pytest
import torch

from nanopref import compare
from nanopref.checkpoint import load_model, save_model
from nanopref.compare import against, answer_ids, in_common, judge_scores, load_judge, main, table, verdict
from nanopref.errors import UserError
from nanopref.findings.two_by_two import favour
from nanopref.text import decode, encode_response

A = [("Why?", "Because it is so.", 2.0), ("Who?", "Me.", 1.0), ("Why?", "No idea.", 3.0)]
B = [("Why?", "So.", 0.0), ("Who?", "You.", 1.0), ("Why?", "Ask me.", 4.0)]
SD = math.sqrt(65 / 30)  # of 2 1 3 0 1 4: squares 31, sum 11, so (31 - 121 / 6) / 5 = 65 / 30


def rows(answers, who="policy", split="test_id"):
    return [{"split": split, "who": who, "prompt": prompt, "answer": answer, "finished": True, "gold": gold}
            for prompt, answer, gold in answers]


def golds(answers):
    return [gold for *_, gold in answers]


def told(favours):
    """What `verdict` reads of one judge: n prompts of which A wins all, half or none."""
    return against(*{0: ([1.0] * 9, [0.0] * 9), 1: ([0.0] * 9, [1.0] * 9), None: ([0.0, 1.0], [1.0, 0.0])}[favours])


def test_one_judge_by_hand():
    """Win, tie, loss: 1/2, with variance 1/4 over 3. Differences 2, 0, -1: mean 1/3, squared deviations 42 / 9."""
    found = against(golds(A), golds(B))
    assert found["mean"] == pytest.approx([2.0, 5 / 3]) and found["ties"] == pytest.approx(1 / 3)
    assert found["win"] == pytest.approx([0.5, math.sqrt(1 / 12)])
    assert found["difference"] == pytest.approx([2 / SD, 0, -1 / SD])
    assert found["shift"] == pytest.approx([1 / 3 / SD, math.sqrt(42 / 9 / 2 / 3) / SD])
    assert found["scores"][0] == pytest.approx([(x - 11 / 6) / SD for x in golds(A)])
    assert sum(found["interval"]) == pytest.approx(1) and found["favours"] is None


def test_units_and_origins_of_a_judge_do_not_matter():
    plain, other = against(golds(A), golds(B)), against(*([7 * x - 100 for x in side] for side in (golds(A), golds(B))))
    for key in ("difference", "shift", "win", "interval"):
        assert other[key] == pytest.approx(plain[key], abs=1e-12)  # rounding at 100


def test_beyond_the_noise_needs_more_than_three_wins():
    """Wilson's interval of 3 of 3 begins at 3 / (3 + 1.96²) = 0.44, that of 4 of 4 at 4 / (4 + 1.96²) = 0.51."""
    assert against([1.0] * 3, [0.0] * 3)["favours"] is None
    assert against([1.0] * 4, [0.0] * 4)["favours"] == 0 and against([0.0] * 4, [1.0] * 4)["favours"] == 1
    assert against([5.0] * 40, [5.0] * 40)["shift"] == [0.0, 0.0]  # a judge to whom all is one: no division by 0


def test_table_by_hand():
    """Gold and a judge that says minus gold: correlation -1, the same share of wins, by one tie, a win and a loss."""
    judged = {"gold": against(golds(A), golds(B)), "judge 1: minus": against(*([-x for x in golds(s)] for s in (A, B)))}
    lines = table([[10, 20, 30], [1, 2, 3]], judged).splitlines()
    cells = lambda start: next(line for line in lines if line.startswith(start)).removeprefix(start).split()
    assert cells("answers") == ["3", "3"]
    assert cells("length (tokens)") == ["20.0", "±", "5.8", "2.0", "±", "0.6"]  # sd 10 and 1, by sqrt(3)
    assert cells("mean score, gold") == ["2.00", "1.67"] and cells("mean score, judge 1") == ["-2.00", "-1.67"]
    assert cells("gold") == ["0.50", "±", "0.29", "0.33", "+0.23", "±", "0.60"]  # 1 / 3 / 1.472, 0.882 / 1.472
    assert cells("judge 1: minus") == ["0.50", "±", "0.29", "0.33", "-0.23", "±", "0.60"]
    assert cells("correlation of A - B, gold with judge 1:") == ["-1.00"]
    constant = {"gold": against([0.0] * 3, [0.0] * 3), "judge 1: x": judged["gold"]}
    assert "none: one is constant" in table([[1] * 3] * 2, constant)


@pytest.mark.parametrize("sides, expected", [
    ((0, 1), "Yes: two preference systems"), ((1, 0), "No, each favours the other's"), ((0, 0), "No, both favour A"),
    ((1, 1), "No, both favour B"), ((None, 1), "Not shown"), ((0, None), "Not shown")])
def test_the_2_x_2_in_words(sides, expected):
    *lines, last = verdict({"gold": told(1), "judge 1: x": told(sides[0]), "judge 2: y": told(sides[1])})
    assert expected in last and lines[0].startswith("gold favours B, beyond the noise")  # gold is nobody's own judge
    for i, (line, side) in enumerate(zip(lines[1:], sides)):
        own = "neither" if side is None else f"{'AB'[side]}, {'its own' if side == i else 'not its own'} policy"
        assert f"judge {i + 1}: {'xy'[i]} favours {own}" in line


def test_an_untrained_head_gets_its_warning_and_one_judge_no_conclusion():
    lines = verdict({"judge 1: untrained x": told(0)})
    assert len(lines) == 2 and "times -1" in lines[1]


@pytest.mark.parametrize("favours, expected", [
    ((0, 0), "Yes: beyond the noise for it on 2 of 2 seeds, against it on 0"),
    ((1, 1), "No: beyond the noise for it on 0 of 2 seeds, against it on 2"),
    ((0, None), "Not on every seed: beyond the noise for it on 1 of 2 seeds, against it on 0")])
def test_over_seeds_in_words(favours, expected):
    assert expected in favour("judge", [told(f) for f in favours], 0, ("A", "B"))
    swapped = [told(None if f is None else 1 - f) for f in favours]
    line = favour("judge", swapped, 1, ("B", "A"))
    assert expected in line and "favour A, its own, over B" in line


def test_the_same_prompt_asked_twice_is_matched_in_order():
    a, b = in_common(rows(A), rows([B[1], ("Unasked?", "Yes.", 0.0), B[0]]))
    assert [(x["answer"], y["answer"]) for x, y in zip(a, b)] == [("Because it is so.", "So."), ("Me.", "You.")]


def test_an_answer_that_was_cut_off_has_no_end_of_turn(tokenizer):
    whole, cut = rows(A)[0], {**rows(A)[0], "finished": False}
    assert answer_ids(tokenizer, whole) == encode_response(tokenizer, A[0][1])
    assert answer_ids(tokenizer, cut) == encode_response(tokenizer, A[0][1])[:-1]
    assert answer_ids(tokenizer, {"answer": "", "finished": False}) == [tokenizer.eos_id]  # nothing to score otherwise


def test_judges_see_prompt_system_message_and_each_answer(tokenizer, tiny_model, monkeypatch):
    """A stub in place of the reward model: its score is the number of response tokens, whoever wrote them."""
    seen = []
    monkeypatch.setattr(compare, "scores", lambda model, examples, progress: seen.extend(examples) or [
        [len(response) for response in e.responses] for e in examples])
    found = judge_scores(tiny_model(), tokenizer, [rows(A), rows(B)], system="Be kind.")
    assert found == [[len(encode_response(tokenizer, answer)) for _, answer, _ in side] for side in (A, B)]
    assert "Be kind." in decode(tokenizer, seen[0].prompt) and "Why?" in decode(tokenizer, seen[0].prompt)


@pytest.fixture
def run(start, tmp_path):
    """A run folder as train_po.py leaves it."""
    model, tokenizer = load_model(start)
    save_model(model, tokenizer, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"system": null}')
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    (tmp_path / "run" / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(A) + rows(B, "start")))
    return tmp_path / "run"


def test_a_run_against_its_start_from_the_command_line(run, start, tmp_path, capsys, monkeypatch):
    reward_model, tokenizer = load_model(start, reward=True)
    save_model(reward_model, tokenizer, tmp_path / "rm" / "model")
    (tmp_path / "rm" / "metrics.jsonl").write_text("{}")
    main([str(run), "--judges", str(tmp_path / "rm"), f"untrained:{run}", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "A: run, B: start, on test_id" in printed and "mean score, gold" in printed
    assert "judge 1: rm " in printed and "judge 2: untrained run" in printed and "Does each judge favour" in printed
    assert (tmp_path / "compare" / "run-vs-start-test_id.png").stat().st_size > 10_000
    monkeypatch.setattr(compare, "figure", lambda *given: None)  # it takes a second
    main([str(run), str(run)])  # no judge but gold; every prompt a tie
    assert "gold favours neither" in capsys.readouterr().out


def test_an_untrained_head_is_drawn_by_its_seed(start):
    heads = [load_judge(f"untrained:{start}", seed)[1].score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_mistakes(run, start, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for arguments, answers, expected in (
            (["nowhere"], [], "no answers.jsonl"), ([run, "--split", "x"], [], "no answers of its policy on x"),
            ([run, other], [{}], "not the answers of a run"), ([run, other], [], "not the answers of a run"),
            ([run, other], rows([("Eh?", "Oh.", 0.0)]), "0 prompts in common"),
            ([other], rows(A), "no answers of its start"), ([run, "--judges", start], [], "0 reward heads"),
            ([run, "--judges", "a", "b", "c"], [], "one or two, not 3")):
        (other / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        with pytest.raises(UserError, match=expected) as error:
            main([*map(str, arguments), "--out", str(tmp_path)])
        assert "\n" not in str(error.value)
