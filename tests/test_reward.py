"""The reward model: its loss by hand, its reward at the right token, and train_rm.py as its user meets it."""
import json
import math

import pytest
import torch
from commands import is_one_line, run_command, start_command
from safetensors.torch import load_file
from test_train import Killed, equal

import train_po
import train_rm
from nanopref.batch import BETWEEN, CHOSEN, REJECTED, Example, collate
from nanopref.data.examples import encode, length_balanced
from nanopref.data.files import Row
from nanopref.errors import UserError
from nanopref.judge.measures_rm import score_pairs
from nanopref.judge.report_rm import extremes
from nanopref.judge.stats import wilson
from nanopref.logps import score
from nanopref.model import Config
from nanopref.reward import (RewardModel, batch_loss, bradley_terry, by_length, by_rank, check_head, d_bradley_terry,
                             d_ranking, ranking, reward_metrics, rewards, score_answers)
from nanopref.run import training
from nanopref.run.checkpoint import load_model
from nanopref.run.config import RunConfig, check_reward_options
from nanopref.text import encode_prompt, encode_response, truncate


def test_loss_by_hand():
    """Margin 0: log 2. Margin log 3: P = 3/4, loss log(4/3). Margin -log 3: P = 1/4, loss log 4."""
    margin = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=torch.float64)
    losses = bradley_terry(margin + 5, torch.full((3,), 5.0, dtype=torch.float64))  # the origin means nothing
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)], abs=1e-15)
    d_w, d_l = d_bradley_terry(margin, torch.zeros(3, dtype=torch.float64))
    assert d_w.tolist() == pytest.approx([-0.5, -0.25, -0.75], abs=1e-15) and torch.equal(d_l, -d_w)


def test_hand_gradient_is_autograds():
    """Both in float64 from the same two numbers: only the last digits may differ. The ends must not overflow."""
    w, l = (torch.linspace(-40, 40, 41, dtype=torch.float64)[order].requires_grad_() for order in
            (torch.arange(41), torch.randperm(41, generator=torch.Generator().manual_seed(0))))
    loss = bradley_terry(w, l)
    for auto, by_hand in zip(torch.autograd.grad(loss.sum(), (w, l)), d_bradley_terry(w, l)):
        assert torch.isfinite(loss).all() and (auto - by_hand).abs().max() < 1e-15


def test_wilson_by_hand():
    """z = 1.96. 8 of 10: (0.8 + 0.19208 ± 1.96 sqrt(0.016 + 0.009604)) / 1.38416; all of 4 is not certainty."""
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 10 + 3.8416 / 400)
    assert wilson(8, 10) == pytest.approx(((0.99208 - spread) / 1.38416, (0.99208 + spread) / 1.38416), abs=1e-12)
    low, high = wilson(4, 4)
    assert low == pytest.approx(4 / (4 + 3.8416)) and high == pytest.approx(1)


def reward_model(seed=0, groups=None, length_rule=None):
    torch.manual_seed(seed)
    model = RewardModel(Config(23, 16, 24, 2, 4, 2, rope_theta=50.0), groups, length_rule).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


def test_a_reward_is_read_at_the_last_token_of_its_own_response():
    """Packed beside its sibling and other pairs, or alone in a row: the same to float64 rounding."""
    model, generator = reward_model(), torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(2, 23, (n,), generator=generator).tolist()
    examples = [Example(draw(p), [draw(w), draw(l)], [CHOSEN, REJECTED]) for p, w, l in
                [(3, 1, 5), (7, 4, 1), (2, 6, 6), (120, 90, 20), (1, 1, 1)]]
    packed = rewards(model, collate(examples))
    alone = [model.score(model(torch.tensor([e.prompt + response])))[0, -1, 0]
             for e in examples for response in e.responses]
    assert (packed - torch.stack(alone)).abs().max() < 1e-12


def test_the_heads_product_is_not_rounded():
    """In bf16 autocast the hidden states are rounded, as are those of everything; the rewards made of them are not: of 400
    hardly two are the same, where bf16 has 128 numbers between 1 and 2. And they are those of the model in float32, to
    the 8 bits of what they are made of."""
    model, generator = reward_model().float(), torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(2, 23, (n,), generator=generator).tolist()
    batch = collate([Example(draw(3), [draw(5), draw(4)], [CHOSEN, REJECTED]) for _ in range(200)])
    with torch.no_grad():
        exact = rewards(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = rewards(model, batch)
    assert rounded.dtype == torch.float32 and len(rounded.unique()) > 0.95 * len(exact.unique())
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


def test_the_options_in_the_loss_by_hand():
    """r_w = 1, r_l = -0.5. Margin 1.5 leaves nothing: log 2. Centring at 0.2 adds 0.2 * 0.5^2 = 0.05, and
    2 * 0.2 * 0.5 = 0.2 to each side of the gradient."""
    w, l = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    assert bradley_terry(w, l, margin=1.5).item() == pytest.approx(math.log(2), abs=1e-15)
    assert bradley_terry(w, l, margin=1.5, center=0.2).item() == pytest.approx(math.log(2) + 0.05, abs=1e-15)
    d_w, d_l = d_bradley_terry(w, l, margin=1.5, center=0.2)
    assert (d_w.item(), d_l.item()) == pytest.approx((-0.5 + 0.2, 0.5 + 0.2), abs=1e-15)


def test_hand_gradients_with_all_options_are_autograds():
    """Random rewards in float64, pairs and rankings of four: only the last digits may differ."""
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w, l, margin = (x.requires_grad_() for x in draw(3, 7))
    gradients = torch.autograd.grad(bradley_terry(w, l, margin.detach(), 0.3).sum(), (w, l))
    for auto, by_hand in zip(gradients, d_bradley_terry(w, l, margin, 0.3)):
        assert (auto - by_hand).abs().max() < 1e-14
    ranked, margins = draw(5, 4).requires_grad_(), draw(5, 6)
    auto, = torch.autograd.grad(ranking(ranked, margins, 0.3).sum(), ranked)
    assert (auto - d_ranking(ranked, margins, 0.3)).abs().max() < 1e-14


def mixed_batch():
    """A pair, a ranking of three and a pair, with scores."""
    return collate([Example([1, 2], [[3, 4], [5]], [CHOSEN, REJECTED], scores=[2.0, 1.0]),
                    Example([1], [[3], [4, 4], [5]], [CHOSEN, BETWEEN, REJECTED], scores=[3.0, 2.0, 0.0]),
                    Example([1, 2, 3], [[3], [5]], [CHOSEN, REJECTED], scores=[1.0, 0.0])])


def test_the_loss_of_a_batch_is_the_sum_over_its_pairs_and_rankings():
    """Score differences 1, (1, 3, 2), 1; at half a nat a point the margins are 0.5, (0.5, 1.5, 1), 0.5."""
    r = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs, of_three = (r[[0, 5]], r[[1, 6]]), r[None, 2:5]
    for margin, center, margins in ((0.0, 0.0, 0.0), (0.5, 0.1, torch.tensor([[0.5, 1.5, 1.0]]))):
        expected = bradley_terry(*pairs, margin, center).sum() + ranking(of_three, margins, center).sum()
        assert batch_loss(r, mixed_batch(), margin, center).item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_label_against_the_scores_lowers_what_is_demanded():
    """Chosen with score 1 over rejected with score 3: at half a nat a point it may stay 1 nat behind."""
    batch = collate([Example([1, 2], [[3, 4], [5]], [CHOSEN, REJECTED], scores=[1.0, 3.0])])
    assert batch_loss(torch.tensor([0.0, 1.0]), batch, margin=0.5).item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_new_head_knows_next_to_nothing(start):
    """Its probabilities are near 1/2, so that the first loss is near log 2 whatever the trunk."""
    torch.manual_seed(0)
    model, _ = load_model(start, reward=True)
    states = torch.randn(1000, model.config.hidden_size)  # of the size that the last norm gives them
    assert 0.05 < model.score(states).std() < 0.3


def test_the_accuracy_of_rankings_is_over_all_their_pairs():
    """Of the ranking 5, 1, 2 two pairs of three are right, best against worst among them; of the pairs 1, 0 and 2, 2
    one: 3 of 5 pairs. Means are over the best, 1, 5, 2, and the worst, 0, 2, 2."""
    sorted_out = by_rank(torch.tensor([1.0, 0, 5, 1, 2, 2, 2]), mixed_batch())
    assert [part.tolist() for part in sorted_out] == [[[1, 2], [0, 2]], [[5], [1], [2]]]
    assert reward_metrics(sorted_out) == pytest.approx({
        "rewards/chosen": 8 / 3, "rewards/rejected": 4 / 3, "rewards/margins": 4 / 3, "rewards/accuracies": 3 / 5})


def test_rules_about_length_by_hand():
    """Reward 2 at 10 and at 30 tokens, L0 = 20. alpha 10: 2 * 30 / 20 = 3 and 2 * 30 / 40 = 1.5. Penalty 0.1: 2 - 1
    twice."""
    reward, length = torch.tensor([2.0, 2.0], dtype=torch.float64), torch.tensor([10, 30])
    assert by_length(None, reward, length) is reward
    assert by_length({"alpha": 10.0, "mean": 20.0}, reward, length).tolist() == pytest.approx([3.0, 1.5], abs=1e-15)
    assert by_length({"penalty": 0.1, "mean": 20.0}, reward, length).tolist() == pytest.approx([1.0, 1.0], abs=1e-15)


def test_texts_are_scored_as_training_scores_them(tokenizer, tiny_model):
    """Against encoding and cutting by hand: a question as a string, a conversation, an answer given as its tokens; of
    the third, the prompt is too long for the context, and is counted once."""
    model = RewardModel(tiny_model().config).double()
    talk = [{"role": role, "content": text} for role, text in
            (("user", "What is tea?"), ("assistant", "A drink."), ("user", "Is it?"))]
    asked = [("Is it?", ["Yes.", "No, it is not."]), (talk, ["Yes.", encode_response(tokenizer, "No.")[:-1]]),
             ("What is tea? " * 100, ["Yes.", "No."])]
    scores, n_cut = score_answers(model, tokenizer, asked)
    yes, no, no_more = (encode_response(tokenizer, text) for text in ("Yes.", "No.", "No, it is not."))
    examples = [Example(*truncate(tokenizer, encode_prompt(tokenizer, messages), [yes, ids], 128)[:2], [CHOSEN] * 2)
                for messages, ids in (([talk[2]], no_more), (talk, no[:-1]),
                                      ([{"role": "user", "content": "What is tea? " * 100}], no))]
    assert n_cut == 1 and scores == score(model, examples, rewards)
    assert scores[0][0] != scores[1][0]  # the earlier turns count


def test_of_a_conversation_the_whole_prompt_is_kept(tokenizer, tiny_model):
    """Two that end with the same question are two prompts, or the report would tell one of their answers only."""
    model = RewardModel(tiny_model().config).double()
    rows = [Row(tuple({"role": "user", "content": text} for text in turns), "Yes.", "No.", 1)
            for turns in (("Tea?", "Is it?"), ("Rain?", "Is it?"), ("Is it?",))]
    judged = score_pairs(model, encode(tokenizer, rows, ("w", "l"), 128)[0], gold=False)
    assert [pair["prompt"] for pair in judged] == ["Tea?\n\nIs it?", "Rain?\n\nIs it?", "Is it?"]
    assert extremes(judged, "test", n=9).count("> ") == 6


@pytest.mark.parametrize("changes, message", [
    ({"num_labels": 2}, "num_labels must be 0 or 1, not 2"),
    ({"num_labels": 3, "groups": ["a", "b"]}, "num_labels must be 0 or 2, not 3"),
    *[({"groups": wrong}, "groups must be a list of different") for wrong in (
        "ab", [], ["a", "a"], [1, 2], 2, {"a": 1, "b": 2})],
    *[({"length_rule": wrong}, "length_rule must hold") for wrong in (
        "alpha", ["alpha", "mean"], 1, True, {}, {"alpha": 1.0}, {"alpha": 1.0, "penalty": 1.0, "mean": 1.0},
        {"alpha": 0, "mean": 0}, {"alpha": -1.0, "mean": 5.0}, {"alpha": True, "mean": 5.0},
        {"penalty": "1", "mean": 5.0}, {"penalty": math.nan, "mean": 5.0}, {"penalty": 1.0, "mean": math.inf})]])
def test_heads_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        check_head(**{"num_labels": 0, "groups": None, "length_rule": None, **changes})
    with pytest.raises(UserError, match=message):
        n = changes.pop("num_labels", 0)
        RewardModel(Config(23, 16, 24, 2, 4, 2, num_labels=n), **changes)


def test_rules_about_length_that_are_kept():
    for rule in (None, {"alpha": 0.0, "mean": 20.5}, {"alpha": 3, "mean": 0}, {"penalty": 0.1, "mean": 20.5}):
        assert reward_model(length_rule=rule).length_rule == rule


def test_every_group_has_its_own_head():
    model = reward_model(groups=["a", "b"])
    by_group = [rewards(model, collate([Example([1, 2], [[3], [4]], [CHOSEN, REJECTED], group=g)])) for g in (0, 1)]
    hidden = model(torch.tensor([[1, 2, 3], [1, 2, 4]]))[:, -1]
    for g in (0, 1):
        assert (by_group[g] - model.score(hidden)[:, g]).abs().max() < 1e-12


def test_balanced_lengths_predict_nothing():
    """In each tenth of the pairs by |difference|: as often up as down, each direction from its own pairs only, and as
    many pairs as before. Here nine pairs in ten have the longer response chosen."""
    pair = lambda a, b: Example([1], [[2] * a, [3] * b], [CHOSEN, REJECTED])
    drawn = torch.Generator().manual_seed(0)
    examples = [pair(10 + d, 10) if i % 10 else pair(10, 10 + d)
                for i, d in enumerate(torch.randint(1, 40, (1000,), generator=drawn).tolist())] + [pair(5, 5)] * 7
    balanced = length_balanced(examples, seed=0)
    gaps = [len(e.responses[0]) - len(e.responses[1]) for e in balanced]
    assert abs(len(balanced) - len(examples)) <= 10 and sum(gap == 0 for gap in gaps) == 7
    assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps)
    assert abs(sum(gaps)) < 0.05 * sum(map(abs, gaps))  # sizes match within a tenth of the pairs, not one by one
    assert {id(e) for e in balanced} <= {id(e) for e in examples}
    assert [id(e) for e in length_balanced(examples, seed=0)] == [id(e) for e in balanced]
    with pytest.raises(UserError, match="works on pairs"):
        length_balanced([Example([1], [[2], [3], [4]], [CHOSEN, BETWEEN, REJECTED])], seed=0)


@pytest.mark.parametrize("knobs, message", [
    ({"beta": 1.0}, "no option beta"), ({"center": -1.0}, "--center must be a number of at least 0"),
    ({"ranking": 1}, "at least 2 responses"), ({"length_penalty": float("nan")}, "--length-penalty must be a number"),
    ({"length_penalty": 0.1, "length_alpha": 1.0}, "two rules for one thing")])
def test_options_that_make_no_sense(knobs, message):
    with pytest.raises(UserError, match=message):
        check_reward_options(knobs)


def run(pairs, start, out, **changes):
    settings = dict(loss="rm", data=str(pairs), model=str(start), epochs=1, batch_size=8, max_length=64, device="cpu",
                    out=str(out), lr=3e-3)
    folder = train_rm.train(RunConfig(**{**settings, **changes}))
    return folder, load_file(folder / "model" / "model.safetensors")


def test_it_learns_what_can_be_learnt(pairs, start, tmp_path):
    """Chosen begins with "It", rejected with "I do": any reward model that is trained at all tells them apart."""
    folder, weights = run(pairs, start, tmp_path, epochs=3)
    told = json.loads((folder / "report.json").read_text())["measures"]["test"]
    assert told["after"]["accuracy"][0] == 1 and told["after"]["margin"][0] > told["before"]["margin"][0] + 1
    log = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=0.1) and log[-1]["loss"] < 0.3
    model, _ = load_model(folder / "model")
    assert model.config.num_labels == 1 and "lm_head.weight" not in weights


def test_a_rule_about_length_stays_with_the_model(pairs, start, tmp_path, no_figure):
    """Scored from its folder, a model gives what it learnt to give: its head's reward less the penalty. L0 is the mean
    length of the training responses."""
    folder, _ = run(pairs, start, tmp_path, knobs={"length_penalty": 0.5})
    model, tokenizer = load_model(folder / "model", dtype=torch.float32)
    rule, examples = model.length_rule, [Example([5, 6], [[7] * 3, [8] * 9], [CHOSEN, REJECTED])]
    assert rule["penalty"] == 0.5 and 5 < rule["mean"] < 40
    ruled = score(model, examples, rewards)[0]
    model.length_rule = None
    plain = score(model, examples, rewards)[0]
    for with_rule, without, length in zip(ruled, plain, (3, 9)):
        assert with_rule == pytest.approx(without - 0.5 * abs(length - rule["mean"]), abs=1e-4)


@pytest.fixture(scope="module")
def ranked(pairs, tmp_path_factory):
    """A file of rankings: three texts of which the first words tell the rank."""
    rows = [json.loads(line) for line in pairs.open()]
    rows = [{"prompt": row["prompt"], "ranked": [row["chosen"], row["chosen"] + " I do not know.", row["rejected"]],
             "scores": [2, 1, 0]} for row in rows]
    path = tmp_path_factory.mktemp("data") / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rankings_from_a_file(ranked, start, tmp_path, no_figure):
    """Tested on pairs of the ends."""
    folder, _ = run(ranked, start, tmp_path, epochs=3, knobs={"margin": 0.1})
    assert json.loads((folder / "report.json").read_text())["measures"]["test"]["after"]["accuracy"][0] == 1


def test_one_head_per_group(pairs, start, tmp_path, no_figure):
    """Two groups with opposite labels: one head cannot please both, two heads can."""
    rows = [json.loads(line) for line in pairs.open()]
    rows = [{"prompt": row["prompt"], "chosen": row[a], "rejected": row[b], "group": group}
            for row in rows for group, a, b in (("for", "chosen", "rejected"), ("against", "rejected", "chosen"))]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy = {}
    for heads in (False, True):
        folder, weights = run(path, start, tmp_path, epochs=3, knobs={"heads": heads})
        accuracy[heads] = json.loads((folder / "report.json").read_text())["measures"]["test"]["after"]["accuracy"][0]
    assert accuracy == {False: 0.5, True: 1.0}
    assert weights["score.weight"].shape[0] == 2 and load_model(folder / "model")[0].groups == ["against", "for"]
    with pytest.raises(UserError, match="2 reward heads, of the groups against, for, where one is needed.*--heads"):
        run(pairs, folder / "model", tmp_path)  # not on the first of its heads, unasked
    (tmp_path / "others.jsonl").write_text(json.dumps({**rows[0], "group": "nobody"}) + "\n")
    with pytest.raises(UserError, match=r"is a pair to test on \(1 rows of no group that the model has a head for"):
        run(path, start, tmp_path, knobs={"heads": True}, test_data=str(tmp_path / "others.jsonl"))


def test_options_that_the_data_cannot_serve(pairs, start, tmp_path, no_figure):
    for knobs, message in (({"heads": True}, "--heads needs the field `group`"),
                           ({"margin": 1.0}, "--margin needs a score"),
                           ({"ranking": 4}, "--ranking goes with the embedded world")):
        with pytest.raises(UserError, match=message):
            run(pairs, start, tmp_path, knobs=knobs)


def test_test_data_without_pairs_is_refused(pairs, start, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "2+2?", "completion": "4"}\n')
    with pytest.raises(UserError, match="test: none of 1 test rows is a pair.*1 rows without a response"):
        run(pairs, start, tmp_path, test_data=str(tmp_path / "d.jsonl"))


def test_a_reward_model_is_refused_as_policy(pairs, start, tmp_path, no_figure):
    folder, _ = run(pairs, start, tmp_path)
    with pytest.raises(UserError, match="a reward model, which cannot write"):
        train_po.train(RunConfig(loss="dpo", data=str(pairs), model=str(folder / "model"), max_length=64,
                                 out=str(tmp_path)))


@pytest.fixture
def no_report(monkeypatch):
    """Where only weights and metrics matter: a figure takes longer than this training."""
    monkeypatch.setattr(train_rm, "report_rm", lambda *given: None)


def test_another_seed_is_another_head(pairs, start, tmp_path, no_report):
    """At a learning rate of 1e-12 the head stays as it was drawn."""
    heads = [run(pairs, start, tmp_path, lr=1e-12, seed=seed)[1]["score.weight"] for seed in (0, 1)]
    assert (heads[0] - heads[1]).abs().mean() > 0.005


def test_same_seed_same_weights(pairs, start, tmp_path, no_report):
    _, first = run(pairs, start, tmp_path / "a")
    _, again = run(pairs, start, tmp_path / "b")
    _, other = run(pairs, start, tmp_path / "c", seed=1)
    assert equal(first, again) and not equal(first, other)


OPTIONS = {"center": 0.01, "margin": 0.1, "length_penalty": 0.01}


@pytest.mark.parametrize("data, knobs", [("pairs", {}), ("ranked", OPTIONS)])
def test_accumulation_is_exact(data, knobs, start, tmp_path, no_report, request):
    one, four = (json.loads((run(request.getfixturevalue(data), start, tmp_path / str(n), accumulate=n, knobs=knobs)[0]
                             / "metrics.jsonl").open().readline()) for n in (1, 4))
    for key in ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "rewards/accuracies"):
        assert four[key] == pytest.approx(one[key], rel=1e-5), key  # float32 sums in another order


@pytest.mark.parametrize("data, knobs", [("pairs", {"length_alpha": 9.0, "balance_length": True}), ("ranked", OPTIONS)])
def test_resume_equals_uninterrupted_bit_for_bit(data, knobs, start, tmp_path, monkeypatch, no_report, capsys, request):
    pairs = request.getfixturevalue(data)
    whole_folder, whole = run(pairs, start, tmp_path / "whole", epochs=2, knobs=knobs)
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    original, seen = train_rm.reward_metrics, []

    def killer(parts):
        seen.append(1)
        if len(seen) == 8:
            raise Killed
        return original(parts)

    monkeypatch.setattr(train_rm, "reward_metrics", killer)
    with pytest.raises(Killed):
        run(pairs, start, tmp_path / "killed", epochs=2, knobs=knobs)
    monkeypatch.setattr(train_rm, "reward_metrics", original)
    capsys.readouterr()
    folder, resumed = run(pairs, start, tmp_path / "killed", epochs=2, resume=True, knobs=knobs)
    assert equal(whole, resumed) and "resuming at step" in capsys.readouterr().out
    rule = load_model(folder / "model")[0].length_rule
    assert rule == load_model(whole_folder / "model")[0].length_rule is not None


@pytest.mark.parametrize("arguments, expected", [
    (["--loss", "dpo"], "unrecognized arguments: --loss"),
    (["--model", "no-such-folder"], "no-such-folder"),
    (["--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
])
def test_mistakes_get_one_line_and_exit_code_2(arguments, expected, tmp_path):
    code, _, err = run_command("train_rm.py", *arguments, "--out", tmp_path)
    assert is_one_line(code, err) and expected in err


def test_a_mistake_ends_the_process_itself_so(tmp_path):
    code, out, err = start_command("train_rm.py", "--data", "no-such-file.jsonl", "--out", tmp_path)
    assert is_one_line(code, err) and "no-such-file.jsonl" in err and not out
