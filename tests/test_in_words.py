"""What a report says in words, and what it must not: each sentence on both sides of its condition."""
import random
from types import SimpleNamespace

import pytest

from nanopref.judge.in_words import read_run


def config(**settings):
    return SimpleNamespace(**{"loss": "dpo", "epochs": 1, "batch_size": 32, **settings})


def log(chosen=-2.0, rejected=-5.0, accuracy=0.7, noise=0.3, **more):
    """200 steps; in the last tenth the log-probs have changed by so much, more or less."""
    rng = random.Random(0)
    return [{"logps_change/chosen": chosen + rng.gauss(0, noise), "logps_change/rejected": rejected + rng.gauss(0, noise),
             "rewards/accuracies": accuracy, **more} for _ in range(200)]


def split(n=40, accuracy=None, **gains):
    """Measures of one split: (start, policy, gain's error) of those named, about n subjects."""
    told = {"score": (1.0, 2.0, 0.2), "length": (20.0, 21.0, 1.0), "win": None, **gains}
    told.pop("win")
    by = {"start": {}, "policy": {"win_vs_sft": [0.6, 0.04]}, "gain": {}}
    for name, (start, policy, error) in told.items():
        by["start"][name], by["policy"][name], by["gain"][name] = [start, 0.1], [policy, 0.1], [policy - start, error]
    by["policy"]["n"] = {name: n for name in told if name not in ("score", "length")}
    if accuracy:
        by["policy"]["accuracy"] = list(accuracy)
    return {"test": by}


def words(metrics=None, measures=None, best=None, **settings):
    return " ".join(read_run(metrics or log(), measures or split(), config(**settings), best or {}))


@pytest.mark.parametrize("said, given, not_given", [
    ("Both log-probs fell", dict(metrics=log(-2, -5)), dict(metrics=log(-2, -2))),
    ("moved alike", dict(metrics=log(-2, -2)), dict(metrics=log(-2, -3))),
    ("moved alike", dict(metrics=log(0, 0, noise=5.0)), dict(metrics=log(-1, -9, noise=5.0))),
    ("a higher --lr", dict(metrics=log(-2, -2)), dict(metrics=log(-5, -2))),
    ("wrong way round: chosen", dict(metrics=log(-5, -2)), dict(metrics=log(-2, -5))),
    ("parted both ways", dict(metrics=log(2, -5)), dict(metrics=log(-2, -5))),
    ("Both log-probs rose", dict(metrics=log(5, 2)), dict(metrics=log(2, -5))),
    ("the likelihood term of cpo", dict(metrics=log(5, 2, nll_loss=1.0), loss="cpo"), dict(metrics=log(5, 2))),
    ("learnt by heart", dict(metrics=log(accuracy=0.9), best={"a": 0.8}, epochs=2),
     dict(metrics=log(accuracy=0.9), best={"a": 0.8}, epochs=1)),  # no pair has been seen before it is ranked
    ("learnt by heart", dict(metrics=log(accuracy=0.9), best={"a": 0.8}, epochs=2),
     dict(metrics=log(accuracy=0.9), best={"a": 0.8}, epochs=2, batch_size=2)),  # 40 pairs are too few
    ("learnt by heart", dict(metrics=log(accuracy=0.9), best={"a": 0.8}, epochs=2), dict(metrics=log(accuracy=0.9), epochs=2)),
    ("is better", dict(measures=split(score=(1.0, 1.5, 0.2))), dict(measures=split(score=(1.0, 1.5, 0.3)))),
    ("is worse", dict(measures=split(score=(1.5, 1.0, 0.2))), dict(measures=split(score=(1.5, 1.0, 0.3)))),
    ("no different beyond the noise", dict(measures=split(score=(1.0, 1.5, 0.3))),
     dict(measures=split(score=(1.0, 1.5, 0.2)))),
    ("from prompts about a single thing nothing more can be told", dict(measures=split(score=(1.0, 1.5, None))),
     dict(measures=split(score=(1.0, 1.5, 0.2)))),
    ("refuses more harmless requests", dict(measures=split(over_refusal=(0.1, 0.2, 0.03))),
     dict(measures=split(over_refusal=(0.1, 0.2, 0.06)))),
    ("refuses more harmless requests", dict(measures=split(over_refusal=(0.1, 0.2, 0.03))),
     dict(measures=split(over_refusal=(0.1, 0.14, 0.01)))),
    ("has spilled over", dict(measures=split(harmful=(0.0, 0.4, 0.1))), dict(measures=split(harmful=(0.0, 0.25, 0.25)))),
    ("has spilled over", dict(measures=split(harmful=(0.0, 0.4, 0.1))), dict(measures=split(n=4, harmful=(0.0, 1.0, 0.0)))),
    ("has spilled over", dict(measures=split(harmful=(0.0, 0.4, 0.1))), dict(measures=split(harmful=(0.0, 1.0, None)))),
    ("answers got longer: 20 -> 30", dict(measures=split(length=(20.0, 30.0, 2.0))),
     dict(measures=split(length=(20.0, 30.0, 6.0)))),
    ("answers got shorter", dict(measures=split(length=(30.0, 20.0, 2.0))), dict(measures=split(length=(30.0, 28.0, 0.1)))),
    ("fewer answers end by themselves", dict(measures=split(finished=(1.0, 0.8, 0.04))),
     dict(measures=split(finished=(1.0, 0.96, 0.001)))),
    ("ranked the wrong way round, 30%", dict(measures=split(accuracy=(0.3, 0.03))), dict(measures=split(accuracy=(0.45, 0.03)))),
    ("ranked the wrong way round", dict(measures=split(accuracy=(0.3, 0.03))),
     dict(measures=split(accuracy=(0.3, 0.03)), loss="simpo")),  # without a reference the start ranks, too
    ("ranked the wrong way round", dict(measures=split(accuracy=(0.3, 0.03))), dict(measures=split(accuracy=(0.0, None)))),
])
def test_a_sentence_is_said_where_it_holds_and_not_elsewhere(said, given, not_given):
    assert said in words(**given) and said not in words(**not_given)


def test_both_signs_flipped_is_called_that():
    """The policy that was trained to like what was rejected: no advice to do more of it."""
    told = words(log(-2.1, -2.0), split(accuracy=(0.3, 0.03)))
    assert "wrong way round" in told and "reversed" in told


def test_pure_noise_is_rarely_told():
    """1,000 runs in which nothing has changed, on 40 harmful and 160 harmless prompts: errors as measured, 2 of them are
    exceeded on one side in 2.5 %."""
    rng, told = random.Random(1), 0
    for _ in range(1000):
        gains = {name: (0.3, 0.3 + rng.gauss(0, error), error) for name, error in (("over_refusal", 0.03), ("harmful", 0.08))}
        told += "more harmless" in (text := words(measures=split(**gains))) or "spilled" in text
    assert told < 60
