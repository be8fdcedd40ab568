"""Two policies under two judges: every number by hand on three prompts, every conclusion in words, every mistake."""
import json
import math

import pytest

import train_po
from nanopref import reward
from nanopref.errors import UserError
from nanopref.findings.two_by_two import favour
from nanopref.judge.compare import against, answer_ids, in_common, judge_scores, load_judge, main, table, verdict
from nanopref.judge.judges import Scoring, messages_of
from nanopref.run.checkpoint import load_model, save_model
from nanopref.run.config import RunConfig
from nanopref.text import decode, encode_response

A = [("Why?", "Because it is so.", 2.0), ("Who?", "Me.", 1.0), ("Why?", "No idea.", 3.0)]
B = [("Why?", "So.", 0.0), ("Who?", "You.", 1.0), ("Why?", "Ask me.", 4.0)]
SD = math.sqrt(65 / 30)  # of 2 1 3 0 1 4: squares 31, sum 11, so (31 - 121 / 6) / 5 = 65 / 30


def rows(answers, who="policy", split="test_id"):
    return [{"split": split, "who": who, "prompt": prompt, "n_messages": 1, "answer": answer, "finished": True,
             "gold": gold} for prompt, answer, gold in answers]


def talk(question, *system):
    """A prompt of several messages, as report.py writes it."""
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", question)]
    return [{"role": role, "content": text} for role, text in [*(("system", s) for s in system), *turns]]


def golds(answers):
    return [gold for *_, gold in answers]


def told(favours):
    """What `verdict` reads of one judge: n prompts of which A wins all, half or none."""
    return against(*{0: ([1.0] * 9, [0.0] * 9), 1: ([0.0] * 9, [1.0] * 9), None: ([0.0, 1.0], [1.0, 0.0])}[favours])


def test_one_judge_by_hand():
    """Win, tie, loss: 1/2, with variance 1/4 over 3. Differences 2, 0, -1: mean 1/3, squared deviations 42 / 9."""
    judged = against(golds(A), golds(B))
    assert judged["mean"] == pytest.approx([2.0, 5 / 3]) and judged["ties"] == pytest.approx(1 / 3)
    assert judged["win"] == pytest.approx([0.5, math.sqrt(1 / 12)])
    assert judged["difference"] == pytest.approx([2 / SD, 0, -1 / SD])
    assert judged["shift"] == pytest.approx([1 / 3 / SD, math.sqrt(42 / 9 / 2 / 3) / SD])
    assert judged["scores"][0] == pytest.approx([(x - 11 / 6) / SD for x in golds(A)])
    assert sum(judged["interval"]) == pytest.approx(1) and judged["favours"] is None


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


def test_conversations_are_matched_whole_but_for_the_system_message():
    """The same last question after other turns is another prompt."""
    a = rows([(talk("Why?"), "x", 0.0), ("Why?", "y", 0.0)])
    b = rows([("Why?", "z", 0.0), (talk("Why?", "Be kind."), "w", 0.0)])
    assert [(x["answer"], y["answer"]) for x, y in zip(*in_common(a, b))] == [("x", "w"), ("y", "z")]


def test_judges_see_the_whole_prompt_and_each_answer(start, monkeypatch):
    """A stub in place of the model's rewards: the number of response tokens, whoever wrote them; without the end of
    turn where the policy wrote none."""
    seen, (_, judge) = [], load_judge(f"untrained:{start}")
    monkeypatch.setattr(reward, "score", lambda model, examples, *given: seen.extend(examples) or [
        [len(response) for response in e.responses] for e in examples])
    first = [{**rows(A)[0], "prompt": talk("Why?", "Be kind."), "finished": False}, *rows(A)[1:]]
    scores = judge_scores(judge, [first, rows(B)])
    n = [[len(encode_response(judge.tokenizer, answer)) for _, answer, _ in side] for side in (A, B)]
    assert scores == [[n[0][0] - 1, *n[0][1:]], n[1]]
    text = decode(judge.tokenizer, seen[0].prompt)
    assert [text.find(part) >= 0 for part in ("Be kind.", "Hello.", "Hi.", "Why?")] == [True] * 4
    assert "Who?" in decode(judge.tokenizer, seen[1].prompt) and "Hello." not in decode(judge.tokenizer, seen[1].prompt)


def test_equal_answers_are_a_tie_however_a_model_rounds(start, monkeypatch):
    """In place of the rounding, which depends on where a response stands in its batch: the place itself. The same text
    without its end of turn is another answer."""
    monkeypatch.setattr(reward, "score", lambda model, examples, *given: [range(len(e.responses)) for e in examples])
    same = [{**row, "finished": False} for row in rows(A)[:1]] + rows(A)[1:]
    scores = judge_scores(load_judge(f"untrained:{start}")[1], [rows(A), rows(A), same])
    assert scores == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


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
    assert "judge 1: reward rm " in printed and "judge 2: untrained run" in printed and "Does each" in printed
    assert "older run" not in printed
    assert (tmp_path / "compare" / "run-vs-start-test_id.png").stat().st_size > 10_000
    monkeypatch.setattr("nanopref.judge.plots_compare.figure", lambda *given: None)  # it takes a second
    main([str(run), str(run)])  # no judge but gold; every prompt a tie
    assert "gold favours neither" in capsys.readouterr().out


def test_a_run_on_conversations_keeps_them_whole_for_the_judges(start, tmp_path, capsys, monkeypatch):
    """train_po.py's own answers.jsonl: beside conversations (here of 3 messages and the system message) one question
    alone stays a string where no system message is added."""
    data = [{"prompt": talk(f"What is {i}?")[-1 if i % 2 else 0:], "chosen": f"It is {i}.", "rejected": "No."}
            for i in range(40)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    monkeypatch.setattr("nanopref.judge.plots.training_figure", lambda *given: None)  # it takes a second
    monkeypatch.setattr("nanopref.judge.plots_compare.figure", lambda *given: None)
    for system in (None, "Be kind."):
        folder = train_po.train(RunConfig(loss="dpo", data=str(tmp_path / "talk.jsonl"), model=str(start), batch_size=8,
                                          max_length=64, device="cpu", out=str(tmp_path), system=system))
        kept = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        for answer in kept:
            messages = messages_of(answer["prompt"])
            is_long = int(messages[-1]["content"].split()[-1].rstrip("?")) % 2 == 0
            assert len(messages) == answer["n_messages"] == (3 if is_long else 1) + (system is not None)
            assert isinstance(answer["prompt"], str) == (len(messages) == 1)
        main([str(folder), "--judges", f"untrained:{folder}", "--out", str(tmp_path)])
        told = capsys.readouterr().out
        assert "judge 1: untrained dpo" in told and "older run" not in told
    assert kept[0]["prompt"][0] == {"role": "system", "content": "Be kind."}


def test_an_older_file_of_other_data_says_what_it_lacks(run, tmp_path, capsys, monkeypatch):
    """One line, and only where a prompt may have had several messages: the embedded world has none of these."""
    monkeypatch.setattr("nanopref.judge.plots_compare.figure", lambda *given: None)
    for left_out, is_said in ((("n_messages",), False), (("n_messages", "gold"), True), (("gold",), False)):
        left = [{key: value for key, value in row.items() if key not in left_out} for row in rows(A) + rows(B, "start")]
        (run / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
        main([str(run)])
        assert capsys.readouterr().out.count("answers.jsonl of an older run") == is_said


def test_a_language_model_that_scores_is_a_judge(run, start, tmp_path, monkeypatch):
    """Its context is too short here for the question, so its replies are not asked for: the score is the number of
    words of the answer's text."""
    monkeypatch.setattr(Scoring, "replies", lambda self, template, fields, replies: [
        [float(k == len(given["a"].split())) for k in range(1, 11)] for given in fields])
    scores = judge_scores(load_judge(f"lm-score:{start}")[1], [rows(A), rows(B)])
    assert scores == [[4, 1, 2], [1, 1, 2]]


def test_mistakes(run, start, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for arguments, answers, expected in (
            (["nowhere"], [], "no answers.jsonl"), ([run, "--split", "x"], [], "no answers of its policy on x"),
            ([run, other], [{}], "not the answers of a run"), ([run, other], [], "not the answers of a run"),
            ([run, other], rows([("Eh?", "Oh.", 0.0)]), "0 prompts in common"),
            ([other], rows(A), "no answers of its start"), ([run, "--judges", start], [], "0 reward heads"),
            ([run, "--judges", "gold"], [], "which score one answer"),
            ([run, "--judges", f"lm-compare:{start}"], [], "which score one answer"),
            ([run, "--judges", "a"], [], "expected gold, reward:DIR"),
            ([run, "--judges", "a", "b", "c"], [], "one or two, not 3")):
        (other / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        with pytest.raises(UserError, match=expected) as error:
            main([*map(str, arguments), "--out", str(tmp_path)])
        assert "\n" not in str(error.value)
