"""Pluralism: every kind of reward model is scored on what it is said to be scored on."""
import math

import pytest
import torch

from nanopref.data.files import read
from nanopref.findings import pluralism
from nanopref.findings.common import standardised
from nanopref.run.checkpoint import load_model, save_model
from nanopref.run.cli import parse_rm
from nanopref.world import labels

GROUPS = list(labels.GROUPS)
LOG3 = math.log(3)  # a difference of log 3 in true reward is a preference of 3 in 4


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(pluralism, "N_TRAIN", 20)
    monkeypatch.setattr(pluralism, "N_TEST", 10)
    return pluralism.write_data(tmp_path, seed=3)


# ---- data and runs --------------------------------------------------------------------------------------------------

def test_every_kind_of_training_file_holds_the_same_labels(files):
    texts = lambda name, side=0: [(row.prompt[-1], row.chosen, row.group) for row in read(files[name][side]).rows]
    assert files["hurried"][0].name == "train-hurried-seed3.jsonl" and files["hurried"][1].name == "test-hurried.jsonl"
    for side, n in ((0, 20), (1, 10)):
        own = [texts(group, side) for group in GROUPS]
        assert all(len(rows) == n for rows in own)
        assert texts("mixed", side) == texts("told", side) == [row for turn in zip(*own) for row in turn]
    assert [(row[1], row[2]) for row in texts("hurried")] == [
        (row[f"response_{row['overall_response']}"], "hurried") for row in labels.pairs("train", 20, 3, "hurried")]


def test_only_the_told_model_is_told(files):
    for row in read(files["told"][0]).rows:
        assert row.prompt[0] == {"role": "system", "content": f"The reader is {row.group}."}
    assert {row.prompt[0]["role"] for name in (*GROUPS, "mixed") for row in read(files[name][0]).rows} == {"user"}


def test_all_runs_differ_in_nothing_but_data_and_heads(files, start):
    """With --rows 5 a group's model sees 5 rows and the models of all see 15, the same 5 of each group."""
    runs = pluralism.runs_of(files, start, 3, "runs", 5)
    assert list(runs) == [*GROUPS, "mixed", "told", "heads"]
    for name, (script, arguments) in runs.items():
        config = parse_rm([str(argument) for argument in arguments])
        assert script == "train_rm.py"
        assert (config.lr, config.batch_size, config.epochs, config.seed) == (3e-4, 32, 1, 3)
        assert config.rows == (5 if name in GROUPS else 15)
        assert config.knobs["heads"] == (name == "heads")
        assert config.data == str(files["mixed" if name == "heads" else name][0])
    assert "--rows" not in pluralism.runs_of(files, start, 3, "runs", None)["mixed"][1]


# ---- scores ---------------------------------------------------------------------------------------------------------

def test_each_groups_pairs_are_scored_by_its_own_head(files, start, tmp_path):
    """Heads that are 1, 2 and 3 times the head of a plain model score 1, 2 and 3 times as high; float32 arithmetic."""
    factor, folders = {"careful": 1.0, "curious": 2.0, "hurried": 3.0}, {}
    torch.manual_seed(0)
    head = torch.randn(32)
    for name, groups in (("plain", None), ("heads", list(factor))):
        model, tokenizer = load_model(start, reward=True, groups=groups)
        with torch.no_grad():
            model.score.weight.copy_(torch.stack([head * f for f in (factor.values() if groups else [1.0])]))
        save_model(model, tokenizer, tmp_path / name)
        folders[name] = pluralism.scored(tmp_path / name, files["mixed"][1])
    for group in GROUPS:
        expected = [[factor[group] * score for score in pair] for pair in folders["plain"][group]]
        assert len(expected) == 10 and len(set(map(tuple, expected))) > 5
        for pair, wanted in zip(folders["heads"][group], expected):
            assert pair == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_standardised_by_hand():
    """1, 3, 5, 3: mean 3, variance (4 + 0 + 4 + 0) / 4 = 2. From each pair's own mean: -1, 1, 1, -1, of variance 1."""
    pairs = torch.tensor([[1.0, 3.0], [5.0, 3.0]])
    assert standardised(pairs, origin=(-2, -1)).flatten().tolist() == pytest.approx([-math.sqrt(2), 0, math.sqrt(2), 0])
    assert standardised(pairs).tolist() == [[-1, 1], [1, -1]]


def test_accuracies_by_hand():
    """First pair: right, agreeing with 3 in 4. Second: against a label that only 1 in 4 would give, so 3 in 4 agree.
    Third: a tie. Expected (0.75 + 0.75 + 0.5) / 3, on the labels (1 + 0 + 0.5) / 3."""
    scores, truth = [(2.0, 1.0), (0.0, 1.0), (1.0, 1.0)], [(LOG3, 0.0), (0.0, LOG3), (9.0, 0.0)]
    assert pluralism.accuracies(scores, truth) == pytest.approx((2 / 3, 0.5), abs=1e-12)


def test_measure_by_hand():
    """Four pairs per group, all true differences log 3: k right choices of 4 have the expected accuracy 0.25 + k / 8.

    The ensemble: two members are right by 3 and one, a hundred times as loud, wrong by as much, on the first two pairs
    of each group, and all are right on the others. Unstandardised, the loud one would decide the first two."""
    right = lambda k: [(3.0, 0.0)] * k + [(0.0, 3.0)] * (4 - k)
    loud = [(0.0, 300.0)] * 2 + [(300.0, 0.0)] * 2
    scores = {"curious": {"curious": right(4), "hurried": right(4), "careful": right(4)},
             "hurried": {"curious": right(4), "hurried": right(4), "careful": right(4)},
             "careful": {"curious": loud, "hurried": loud, "careful": loud},
             "mixed": {"curious": right(0), "hurried": right(1), "careful": right(2)},
             "told": {"curious": right(3), "hurried": right(4), "careful": right(0)},
             "heads": {"curious": right(1), "hurried": right(0), "careful": right(3)}}
    result = pluralism.measure(scores, {group: [(LOG3, 0.0)] * 4 for group in GROUPS})
    counts = {"averaged": (0, 1, 2), "own": (4, 4, 2), "another's": (3, 3, 4), "ensemble": (4, 4, 4),
              "conditioned": (3, 4, 0), "heads": (1, 0, 3), "best possible": (4, 4, 4)}
    assert list(result) == [*pluralism.KINDS, pluralism.BEST]
    for kind, by_group in counts.items():
        for group, k in zip(GROUPS, by_group):
            assert result[kind][group] == pytest.approx((0.25 + k / 8, k / 4), abs=1e-12), (kind, group)


# ---- table and figure -----------------------------------------------------------------------------------------------

@pytest.fixture
def seeds():
    """Two seeds. Expected accuracies 0.5 but for: best possible 0.9, 0.8, 0.7; own 0.8, 0.8, 0.6 (and 0.02 more with
    the second seed); heads 0.7 all over; on the labels everything is 0.25."""
    values = {pluralism.BEST: (0.9, 0.8, 0.7), "own": (0.8, 0.8, 0.6), "heads": (0.7, 0.7, 0.7)}
    return [{kind: {g: (values.get(kind, (0.5,) * 3)[i] + (0.02 * seed if kind == "own" else 0.0), 0.25)
                    for i, g in enumerate(GROUPS)} for kind in (*pluralism.KINDS, pluralism.BEST)} for seed in (0, 1)]


def test_the_table_says_who_is_served_worst(seeds):
    """Own: means 0.81, 0.81 and 0.61 with sd 0.02 / sqrt(2) = 0.014; losses 0.09, -0.01, 0.09: the curious or careful.
    Heads lose 0.2 for the curious; the averaged 0.4. Own means 0.733 and 0.753, heads 0.7: ahead by 0.043 ± 0.014."""
    assert pluralism.worst_served("averaged", seeds) == (pytest.approx(0.4), "curious")
    assert pluralism.worst_served("heads", seeds) == (pytest.approx(0.2), "curious")
    assert pluralism.worst_served("own", seeds)[0] == pytest.approx(0.09)
    lines = pluralism.table(seeds).splitlines()
    own = next(line for line in lines if line.startswith("own")).split()
    assert own[1:13] == ["0.810", "±", "0.014", "0.810", "±", "0.014", "0.610", "±", "0.014", "0.743", "±", "0.014"]
    assert own[13:16] == ["0.250", "±", "0.000"] and own[-1] == "-0.090"
    assert "Best on average: own, ahead of heads by 0.043 ± 0.014" in lines[-2] and lines[-2].endswith("group: own.")
    assert lines[-1] == "Averaging all labels costs most for the curious: 0.400 below its best possible."


def test_the_figure_is_saved(seeds, tmp_path, capsys):
    pluralism.figure(seeds, tmp_path)
    assert (tmp_path / "findings" / "pluralism.png").stat().st_size > 10_000
    assert "pluralism.png" in capsys.readouterr().out
