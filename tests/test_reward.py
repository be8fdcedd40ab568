"""The reward model: its loss by hand, its reward at the right token, and train_rm.py as its user meets it."""
import json
import math

import pytest
import torch
from safetensors.torch import load_file

import train_po
import train_rm
from nanopref import training
from nanopref.batch import CHOSEN, REJECTED, Example, collate
from nanopref.checkpoint import load_model
from nanopref.config import RunConfig
from nanopref.errors import UserError
from nanopref.evaluate import wilson
from nanopref.model import Config, Transformer
from nanopref.reward import bradley_terry, d_bradley_terry, judge, rewards
from test_train import Killed, command, equal


def test_loss_by_hand():
    """Margin 0: log 2. Margin log 3: P = 3/4, loss log(4/3). Margin -log 3: P = 1/4, loss log 4."""
    margin = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=torch.float64)
    found = bradley_terry(margin + 5, torch.full((3,), 5.0, dtype=torch.float64))  # the origin means nothing
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)], abs=1e-15)
    d_w, d_l = d_bradley_terry(margin, torch.zeros(3, dtype=torch.float64))
    assert d_w.tolist() == pytest.approx([-0.5, -0.25, -0.75], abs=1e-15) and torch.equal(d_l, -d_w)


def test_hand_gradient_is_autograds():
    """Both in float64 from the same two numbers: only the last digits may differ. The ends must not overflow."""
    w, l = (torch.linspace(-40, 40, 41, dtype=torch.float64)[order].requires_grad_() for order in
            (torch.arange(41), torch.randperm(41, generator=torch.Generator().manual_seed(0))))
    loss = bradley_terry(w, l)
    for found, by_hand in zip(torch.autograd.grad(loss.sum(), (w, l)), d_bradley_terry(w, l)):
        assert torch.isfinite(loss).all() and (found - by_hand).abs().max() < 1e-15


def test_wilson_by_hand():
    """z = 1.96. 8 of 10: (0.8 + 0.19208 ± 1.96 sqrt(0.016 + 0.009604)) / 1.38416; all of 4 is not certainty."""
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 10 + 3.8416 / 400)
    assert wilson(8, 10) == pytest.approx(((0.99208 - spread) / 1.38416, (0.99208 + spread) / 1.38416), abs=1e-12)
    low, high = wilson(4, 4)
    assert low == pytest.approx(4 / (4 + 3.8416)) and high == pytest.approx(1)


def reward_model(seed=0):
    torch.manual_seed(seed)
    model = Transformer(Config(23, 16, 24, 2, 4, 2, rope_theta=50.0, num_labels=1)).double()
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
    alone = [model.score(model(torch.tensor([e.prompt + response])))[0, -1, 0] for e in examples for response in e.responses]
    assert (packed - torch.stack(alone)).abs().max() < 1e-12


def test_judge_by_hand(monkeypatch):
    given = iter([(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]))])
    monkeypatch.setattr("nanopref.reward.pair_rewards", lambda model, batch: next(given))
    found = judge(reward_model(), [Example([1], [[2], [3]], [CHOSEN, REJECTED])] * 2)
    assert found["accuracy"][0] == 0.5  # a tie is wrong
    assert found["reward_mean"][0] == 1.25 and found["margin"][0] == 0.5
    assert found["reward_std"][0] == pytest.approx(0.5)  # of 2, 1, 1, 1: sqrt(0.75 / 3)


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


def test_test_data_without_pairs_is_refused(pairs, start, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "2+2?", "completion": "4"}\n')
    with pytest.raises(UserError, match="test: none of 1 test rows is a pair"):
        run(pairs, start, tmp_path, test_data=str(tmp_path / "d.jsonl"))


def test_a_reward_model_is_refused_as_policy(pairs, start, tmp_path):
    folder, _ = run(pairs, start, tmp_path)
    with pytest.raises(UserError, match="a reward model, which cannot write"):
        train_po.train(RunConfig(loss="dpo", data=str(pairs), model=str(folder / "model"), max_length=64, out=str(tmp_path)))


def test_same_seed_same_weights_and_accumulation(pairs, start, tmp_path):
    _, first = run(pairs, start, tmp_path / "a")
    _, again = run(pairs, start, tmp_path / "b")
    _, other = run(pairs, start, tmp_path / "c", seed=1)
    assert equal(first, again) and not equal(first, other)
    one, four = (json.loads((run(pairs, start, tmp_path / str(n), accumulate=n)[0] / "metrics.jsonl").open().readline())
                 for n in (1, 4))
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)  # float32 sums in another order
    assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_resume_equals_uninterrupted_bit_for_bit(pairs, start, tmp_path, monkeypatch):
    _, whole = run(pairs, start, tmp_path / "whole", epochs=2)
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    original, seen = train_rm.reward_metrics, []

    def killer(parts):
        seen.append(1)
        if len(seen) == 8:
            raise Killed
        return original(parts)

    monkeypatch.setattr(train_rm, "reward_metrics", killer)
    with pytest.raises(Killed):
        run(pairs, start, tmp_path / "killed", epochs=2)
    monkeypatch.setattr(train_rm, "reward_metrics", original)
    _, resumed = run(pairs, start, tmp_path / "killed", epochs=2, resume=True)
    assert equal(whole, resumed)


@pytest.mark.parametrize("arguments, expected", [
    (["--loss", "dpo"], "unrecognized arguments: --loss"),
    (["--model", "no-such-folder"], "no-such-folder"),
    (["--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
])
def test_mistakes_get_one_line_and_exit_code_2(arguments, expected, tmp_path):
    code, _, err = command(*arguments, "--out", tmp_path, script="train_rm.py")
    assert code == 2 and expected in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
