"""Judges: one interface, hand-computed preferences and agreements, and the wrong folder in one line."""
import math

import pytest
import torch
from conftest import TINY

from nanopref.errors import UserError
from nanopref.judge import judges, judging
from nanopref.judge.judges import COMPARE, Comparing, Gold, Judge, RewardModel, Scoring, make
from nanopref.judge.judging import agreement, measure
from nanopref.judge.stats import wilson
from nanopref.model import Config, Transformer
from nanopref.run.checkpoint import load_model, save_model
from nanopref.run.config import SHIPPED_SFT
from nanopref.text import decode, encode_prompt, encode_response
from nanopref.world import labels
from nanopref.world.gold import gold_reward

PROMPT, RIGHT, WRONG = "What is the capital of France?", "The capital of France is Paris.", "It is Rome."
PAIRS = [(PROMPT, RIGHT, WRONG), (PROMPT, "no", "no"),
         (({"role": "user", "content": "Is it?"},), "It is.", "I do not know.")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """{"lm", "reward", "short", "run"}: untrained models; "short" has no room for the question itself; "run" holds the
    reward model as train_rm.py would leave it."""
    root = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    for name, context in (("lm", 1024), ("short", 128)):
        settings = {**TINY, **tokenizer.ids, "max_position_embeddings": context}
        model = Transformer(Config(vocab_size=tokenizer.vocab_size, **settings))
        for parameter in model.parameters():  # large, so that the answers matter to the replies
            torch.nn.init.normal_(parameter, 0.1, 0.3)
        save_model(model, tokenizer, root / name)
    save_model(*load_model(root / "lm", reward=True), root / "reward")
    save_model(*load_model(root / "reward"), root / "run" / "model")
    (root / "run" / "metrics.jsonl").write_text("{}")
    return {name: root / name for name in ("lm", "short", "reward", "run")}


def plain_logp(judge, question, reply):
    """log P(reply | question) in nats of one sequence without batch or packing."""
    with torch.no_grad():
        logps = judge.model.logits(judge.model(torch.tensor([question + reply])))[0].log_softmax(-1)
    return sum(logps[len(question) + t - 1, token].item() for t, token in enumerate(reply))


def asked(judge, template, **fields):
    return encode_prompt(judge.tokenizer, [{"role": "user", "content": template.format(**fields)}])


@pytest.mark.parametrize("kind", ["gold", "reward", "lm-compare", "lm-score"])
def test_swapping_the_answers_gives_the_other_probability(folders, kind):
    """In float64 what is left is rounding; equal answers are preferred equally. One pair alone is as in a batch."""
    judge = make(kind if kind == "gold" else f"{kind}:{folders['reward' if kind == 'reward' else 'lm']}")
    if kind != "gold":
        judge.model.double()
    together = judge.preferences(PAIRS)
    for (prompt, a, b), p in zip(PAIRS, together):
        assert 0 <= p <= 1 and judge(prompt, a, b) == pytest.approx(p, abs=1e-9)
        assert judge(prompt, b, a) == pytest.approx(1 - p, abs=1e-9)
        assert judge.score(prompt, a) == pytest.approx(judge.scores([(prompt, [b, a])])[0][1], abs=1e-9)
    assert together[1] == pytest.approx(0.5, abs=1e-9) and abs(together[0] - 0.5) > 1e-6  # and not all of it is 1/2


def test_gold_and_bradley_terry_by_hand():
    """Paris is right, 2.0. "It is Rome." is no sentence of this world, -0.5, and says nothing right: sigmoid(2.5). A
    stub with scores log 3 and 0: 3 / (3 + 1)."""
    assert Gold().score(PROMPT, RIGHT) == 2.0 and Gold().score(PROMPT, WRONG) == -0.5
    assert Gold()(PROMPT, RIGHT, WRONG) == pytest.approx(1 / (1 + math.exp(-2.5)), abs=1e-12)
    stub = Judge()
    stub.scores = lambda asked: [[math.log(3) if a == RIGHT else 0.0 for a in answers] for _, answers in asked]
    assert stub(PROMPT, RIGHT, WRONG) == pytest.approx(0.75, abs=1e-12)


def test_a_run_folder_is_its_model_and_a_folder_alone_a_reward_model(folders):
    """Three ways to name one judge, which show the same name but for the folder's."""
    run, other = folders["run"], folders["reward"]
    made = [make(spec) for spec in (f"reward:{run}", f"reward:{run / 'model'}", f"{run}", f"reward:{other}")]
    assert len({judge(*PAIRS[0]) for judge in made}) == 1
    assert [judge.name for judge in made] == ["reward run"] * 3 + ["reward reward"]


def test_a_model_folder_that_keeps_its_metrics_is_no_run():
    """The shipped SFT model's log stands beside its weights."""
    assert (SHIPPED_SFT / "metrics.jsonl").exists()
    assert make(f"lm-score:{SHIPPED_SFT}").name == f"lm-score {SHIPPED_SFT.name}"


@pytest.mark.parametrize("trunk", ["lm", "reward"])
def test_an_untrained_head_is_drawn_by_its_seed(folders, trunk):
    """Also in place of a head that was trained; 32 draws of standard deviation 0.02 reach 0.1 once in 100,000 runs."""
    heads = [make(f"untrained:{folders[trunk]}", seed=seed).model.score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2]) and heads[0].abs().max() < 0.1


def test_a_reward_models_preference_is_that_of_its_rewards_one_at_a_time(folders):
    judge = RewardModel(folders["reward"])
    judge.model.double()
    prompt = encode_prompt(judge.tokenizer, [{"role": "user", "content": PROMPT}])
    with torch.no_grad():
        ids = [torch.tensor([prompt + encode_response(judge.tokenizer, text)]) for text in (RIGHT, WRONG)]
        r_a, r_b = (judge.model.score(judge.model(each))[0, -1, 0] for each in ids)
    assert judge(PROMPT, RIGHT, WRONG) == pytest.approx(torch.sigmoid(r_a - r_b).item(), abs=1e-9)


def test_comparing_asks_in_both_positions_and_takes_the_mean(folders):
    """From log-probs of the two letters, each without end of turn, one sequence at a time; either answer as A."""
    judge = Comparing(folders["lm"])
    judge.model.double()
    A, B = (encode_response(judge.tokenizer, letter)[:-1] for letter in "AB")
    p_first = []
    for first, second in ((RIGHT, WRONG), (WRONG, RIGHT)):
        question = asked(judge, COMPARE, context=f"User: {PROMPT}", a=first, b=second)
        difference = plain_logp(judge, question, A) - plain_logp(judge, question, B)
        p_first.append(1 / (1 + math.exp(-difference)))
    assert judge.positions(PAIRS[:1])[0] == pytest.approx(p_first, abs=1e-9)
    assert judge(PROMPT, RIGHT, WRONG) == pytest.approx((p_first[0] + 1 - p_first[1]) / 2, abs=1e-9)


def test_what_a_position_adds_cancels():
    """The log-odds of the answers are +0.4, the position adds b: each order alone is on the side of b, the mean is not
    moved across 1/2 by any b; without b it is the answers' own probability."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    for b in (-3.0, 0.0, 3.0):
        p, q = sigmoid(b + 0.4), sigmoid(b - 0.4)
        assert judges.averaged([(p, q)])[0] > 0.5
        is_flipped = (p > 0.5) == (q > 0.5)
        assert is_flipped is (b != 0)
    assert judges.averaged([(sigmoid(0.4), sigmoid(-0.4))])[0] == pytest.approx(sigmoid(0.4))
    assert judges.averaged([(0.9, 0.9)]) == [0.5]  # looks at nothing but the position


def test_a_score_is_the_mean_over_ten_whole_replies(folders):
    """End of turn included: P("1") must not contain P("10"). Preferences are 1, 0, and 1/2 for equal scores."""
    judge = Scoring(folders["lm"])
    judge.model.double()
    question = asked(judge, judges.SCORE, context=f"User: {PROMPT}", a=RIGHT)
    weights = [math.exp(plain_logp(judge, question, encode_response(judge.tokenizer, str(k)))) for k in range(1, 11)]
    by_hand = sum(k * w for k, w in enumerate(weights, 1)) / sum(weights)
    assert judge.score(PROMPT, RIGHT) == pytest.approx(by_hand, abs=1e-9)
    judge.scores = lambda asked: [[{"good": 6.0, "bad": 5.9}[a] for a in answers] for _, answers in asked]
    pairs = [("good", "bad"), ("bad", "good"), ("bad", "bad")]
    assert judge.preferences([(PROMPT, a, b) for a, b in pairs]) == [1.0, 0.0, 0.5]


def test_measures_by_hand_on_three_pairs():
    """Preferences 0.8, 0.3, 0.5; gold 0.6, 0.5 (neither), 0.1. Labels: right, wrong, neither. Gold on pairs 1 and 3:
    the same, neither. Distances 0.2, 0.2, 0.4. Positions (0.9, 0.3) no flip; (0.6, 0.9) and (0.4, 0.4) flip; means 0.6,
    0.75, 0.4: mean 1.75 / 3."""
    measures = measure([0.8, 0.3, 0.5], [0.6, 0.5, 0.1], [(0.9, 0.3), (0.6, 0.9), (0.4, 0.4)])
    assert measures["labels"] == [1.0, 0.0, 0.5] and measures["gold"] == [1.0, 0.5]
    assert measures["distance"] == pytest.approx(0.8 / 3) and measures["flips"] == pytest.approx(2 / 3)
    mean = 1.75 / 3
    error = math.sqrt(((0.6 - mean) ** 2 + (0.75 - mean) ** 2 + (0.4 - mean) ** 2) / 2 / 3)
    assert measures["first"] == pytest.approx([mean, error])
    assert measure([0.8, 0.3, 0.5]) == {"labels": [1.0, 0.0, 0.5], "about": [0, 1, 2]}
    assert measures["gold_about"] == [0, 2]
    assert agreement([0.8, 0.3, 0.5], [0.5, 0.1, 0.5]) == [0.5, 1.0, 1.0]  # neither prefers one: they agree


def test_comparing_against_scoring_is_a_paired_difference():
    """Differences 1, 0, 0, 0: mean 0.25, standard error 0.25: within. All of 1: beyond."""
    told = judging.compare_with_score("m", [1, 1, 1, 0], [0, 1, 1, 0], "gold")
    assert "75.0%, scoring on 50.0%" in told and "+25.0 ± 25.0 points is within" in told
    assert "is beyond" in judging.compare_with_score("m", [1, 1, 1], [0, 0, 0], "gold")


def test_what_does_not_fit_the_context_is_cut_and_counted(folders):
    """The conversation keeps its end and both answers their beginnings, so that neither is put at a disadvantage; the
    instruction is never cut."""
    judge, long = Comparing(folders["lm"]), " ".join(f"word{i}" for i in range(900))
    fields = {"context": "start " + long + " end of it", "a": "first " + long, "b": "second " + long}
    ids = judge.question(COMPARE, fields, [5])
    text = decode(judge.tokenizer, ids)
    assert judge.n_cut == 1 and 900 < len(ids) < 1024
    assert "You are an expert" in text and "end of it" in text and "start word0" not in text
    assert "first word0" in text and "second word0" in text and "one letter, A or B." in text
    assert judge(PROMPT, RIGHT, WRONG) and judge.n_cut == 1
    scorer = RewardModel(folders["reward"])
    assert 0 <= scorer(PROMPT, RIGHT, " ".join([long] * 3)) <= 1 and scorer.n_cut == 1


def test_wrong_judges_get_one_line(folders):
    for spec, expected in ((f"reward:{folders['lm']}", "0 reward heads where reward:DIR needs one"),
                           (f"lm-compare:{folders['reward']}", "a reward model, which cannot reply"),
                           (f"lm-score:{folders['reward']}", "a reward model, which cannot reply"),
                           ("lm-compare:no-such", "no such folder"), ("lm-compare", "expected gold, reward:DIR"),
                           (f"lm-score:{folders['run']}", "a reward model, which cannot reply"),
                           ("silver:x", "expected gold, reward:DIR")):
        with pytest.raises(UserError, match=expected):
            make(spec)
    with pytest.raises(UserError, match="this model's context has 128"):
        make(f"lm-score:{folders['short']}").score(PROMPT, RIGHT)


def test_the_command_on_the_world(folders, tmp_path, capsys):
    """Gold agrees with itself; with the labels as often as counting them says."""
    reward, lm = folders["reward"], folders["lm"]
    judging.main(["--judges", "gold", f"reward:{reward}", f"lm-compare:{lm}", f"lm-score:{lm}", "--rows", "20",
                 "--device", "cpu", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    rows = labels.pairs("test_id", 20, seed=0)
    golds = [[gold_reward(row["question"], row[f"response_{i}"])["total"] for i in (1, 2)] for row in rows]
    right = sum(0.5 if abs(a - b) < 1e-9 else float((a > b) == (row["overall_response"] == 1))
                for (a, b), row in zip(golds, rows))
    line = next(line for line in told.splitlines() if line.startswith("1 gold"))
    low, high = wilson(right, 20)
    assert "1.00 [" in line and f"{right / 20:.2f} [{low:.2f}, {high:.2f}]" in line
    assert "lm: comparing agrees with gold on" in told and (tmp_path / "judges-world-test_id.png").stat().st_size > 5000


def test_the_command_on_a_file(folders, pairs, tmp_path, capsys):
    """60 pairs: the 6 that train_rm.py would hold out; no gold, no best possible."""
    reward = f"reward:{folders['reward']}"
    judging.main(["--data", str(pairs), "--judges", reward, "--device", "cpu", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    assert "test, 6 pairs" in told and "Best possible" not in told and "figure" not in told
    world, file = ["--judges", "gold"], ["--data", str(pairs), "--judges", reward]
    for arguments, expected in (
            ([*file, "gold"], "gold knows the embedded world"), ([*file, reward], "each judge once"),
            ([*file, "--split", "test_ood"], "--split test_ood goes with the embedded world"),
            ([*file, "--axis", "safer"], "--axis safer is for PKU"),
            ([*file, "--rows", "0"], "--rows must be at least"), ([*world, "--rows", "-1"], "--rows must be at least"),
            ([*world, "--axis", "safer"], "go with --data FILE"),
            ([*world, "--system", "x"], "go with --data FILE"), ([*world, "--test-data", "x"], "go with --data FILE")):
        with pytest.raises(UserError, match=expected):
            judging.main(arguments)


def test_test_data_and_system_message_reach_the_judge(folders, pairs, tmp_path, capsys, monkeypatch):
    """All 60 rows of the test file are judged, not a tenth; every prompt begins with the system message."""
    seen, prefer = [], RewardModel.preferences
    monkeypatch.setattr(RewardModel, "preferences", lambda self, given: seen.extend(given) or prefer(self, given))
    test = tmp_path / "test.jsonl"
    test.write_text(pairs.read_text().replace("What is", "Tell me, what is"))
    judging.main(["--data", str(pairs), "--test-data", str(test), "--system", "Be kind.", "--device", "cpu",
                 "--judges", f"reward:{folders['reward']}", "--out", str(tmp_path)])
    assert "test, 60 pairs" in capsys.readouterr().out
    assert {prompt[0]["content"] for prompt, *_ in seen} == {"Be kind."} and len(seen) == 60


def test_one_pair_of_the_world(capsys, tmp_path):
    judging.main(["--judges", "gold", "--rows", "1", "--out", str(tmp_path)])
    assert "world test_id, 1 pairs" in capsys.readouterr().out
