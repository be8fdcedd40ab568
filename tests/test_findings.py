"""The numbers of every finding's table come from where it says."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanopref import reward
from nanopref.findings import accuracy, common, options, overfit, real_data
from nanopref.judge import measures_rm
from nanopref.run.checkpoint import load_model, save_model
from nanopref.world import labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start):
    """Two run folders: a reward model with a random head, and one that gives every answer the same."""
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for folder, scale in zip(folders, (1.0, 0.0)):
        model, tokenizer = load_model(start, dtype=torch.float32, reward=True)
        with torch.no_grad():
            model.score.weight.copy_(scale * torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
        save_model(model, tokenizer, folder / "model")
    return folders


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(common, "N_TEST", 20)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """fakes(finding): its main trains and judges nothing. The run of the i-th setting on seed s has an expected
    accuracy of 0.5 + i / 50 + s / 25 on test_id: mean 0.52 + i / 50, sd 0.028 of two seeds. All else is -1."""
    def judge(run, tokenizer, tests):
        i, s = (int(part) for part in run.name.split("-"))
        measures = {split: dict.fromkeys(("accuracy", "nll", "corr_length", "length_beyond_gold", "reward_mean",
                                       "reward_std", "calibration_error", "overconfidence", "expected_accuracy"), -1.0)
                 for split in common.SPLITS}
        measures["test_id"]["expected_accuracy"] = 0.5 + i / 50 + s / 25
        return measures

    def install(finding):
        fake = {"train": lambda settings, args: {name: [tmp_path / f"{i}-{s}" for s in range(args.seeds)]
                                                 for i, name in enumerate(settings)},
                "test_pairs": lambda out: ({"test_id": [], "test_ood": []}, {"test_id": 0.9, "test_ood": 0.8}),
                "load": lambda run: (run, None), "judge": judge}
        for name, function in fake.items():
            monkeypatch.setattr(finding, name, function)
        return ["--seeds", "2", "--out", str(tmp_path)]
    return install


def line_of(printed: str, name: str) -> list[str]:
    """The first line that begins with `name`: what follows it, in words."""
    return next(line for line in printed.splitlines() if line.strip().startswith(name)).split(name, 1)[1].split()


# ---- common ---------------------------------------------------------------------------------------------------------

def test_test_pairs_are_of_the_world_and_so_is_what_is_best(few, tmp_path):
    rows, best = common.test_pairs(tmp_path)
    for split in ("test_id", "test_ood"):
        pairs = labels.pairs(split, 20, seed=1)
        assert [row.prompt[-1]["content"] for row in rows[split]] == [pair["question"] for pair in pairs]
        assert best[split] == labels.best_accuracy(pairs)
        assert pairs != labels.pairs(split, 20, seed=0)  # a run's own report has these
    assert (tmp_path / "findings" / "data" / "test_ood.jsonl").is_file()


def test_a_setting_is_trained_with_its_flags_on_every_seed(monkeypatch):
    def train_all(runs, jobs):
        assert jobs == 1
        return [" ".join(map(str, arguments)) for _, arguments in runs]

    monkeypatch.setattr(common, "train_all", train_all)
    args = SimpleNamespace(seeds=2, out="runs", rows=None, jobs=1)
    settings = {"plain": [], "wide": ["--batch-size", 64]}
    assert common.train(settings, args) == {
        "plain": ["--seed 0 --out runs", "--seed 1 --out runs"],
        "wide": ["--seed 0 --out runs --batch-size 64", "--seed 1 --out runs --batch-size 64"]}
    args.rows = 9
    assert common.train(settings, args)["wide"][1] == "--seed 1 --out runs --batch-size 64 --rows 9"


def test_judging_is_the_reward_models_own_measure(few, runs, tmp_path):
    """By text, through score_answers: the same rewards as through encode; 20 pairs, sums of float32. The judge of
    constant rewards has no correlation: None."""
    tests, _ = common.test_pairs(tmp_path)
    model, tokenizer = common.load(runs[0])
    scored = common.scored(model, tokenizer, tests["test_ood"])
    by_text, _ = reward.score_answers(model, tokenizer, [(p["prompt"], [p["chosen"], p["rejected"]]) for p in scored])
    assert [(p["reward_chosen"], p["reward_rejected"]) for p in scored] == [pytest.approx(s, abs=1e-5) for s in by_text]
    judged = [common.judge(*common.load(run), tests) for run in runs]
    assert judged[0]["test_ood"]["accuracy"] == sum(w > l for w, l in by_text) / 20
    assert judged[0]["test_id"]["expected_accuracy"] == measures_rm.measure(
        common.scored(model, tokenizer, tests["test_id"]))["expected_accuracy"][0]
    assert common.values(judged, "test_id", "accuracy")[1] == 0  # ties are wrong
    assert common.values(judged, "test_ood", "corr_length")[1] is None
    assert common.values(judged, "test_ood", "corr_length")[0] == judged[0]["test_ood"]["corr_length"]


def test_gains_are_seed_by_seed():
    judged = [[{"test_id": {"expected_accuracy": x}} for x in seeds] for seeds in ((0.7, 0.6, 0.8), (0.6, 0.6, 0.9))]
    assert common.gains(*judged) == (pytest.approx([0.1, 0.0, -0.1]), 1)


@pytest.mark.parametrize("origin", [-1, (-2, -1)])
def test_constant_rewards_are_zeros_when_standardised(origin):
    """Thirds do not add up exactly, in float32 least of all."""
    assert common.standardised(torch.full((2, 3, 7), 1 / 3), origin).tolist() == torch.zeros(2, 3, 7).tolist()


# ---- accuracy -------------------------------------------------------------------------------------------------------

def test_the_table_of_accuracies(fakes, monkeypatch, capsys):
    """16 pairs and 2 epochs are i = 3: 0.58. Best possible is 0.9, so it has 0.08 / 0.4 of what is possible. The
    untrained heads are made i = 9: 0.70."""
    monkeypatch.setattr(accuracy, "sft_models", lambda args: [Path(f"9-{s}") for s in range(args.seeds)])
    given = fakes(accuracy)
    monkeypatch.setattr(accuracy, "untrained", lambda start, seed, tests: accuracy.judge(start, None, tests))
    accuracy.main(given)
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[4:9]] == [
        ["4", "1"], ["16", "1"], ["32", "1"], ["16", "2"], ["32", "2"]]
    none = "-1.000 ± 0.000"
    assert " ".join(printed.splitlines()[7].split()) == f"16 2 {none} 0.580 ± 0.028 0.20 ± 0.07 {none} {none} {none}"
    assert " ".join(line_of(printed, "untrained head")).startswith(f"- {none} 0.700 ± 0.028 0.50 ± 0.07")
    assert "two epochs instead of one, batch 16: 0.040 ± 0.000 (2 of 2 seeds better)" in printed  # i = 3 and 1
    assert "batch 16 instead of 4, one epoch: 0.020 ± 0.000 (2 of 2" in printed
    assert "figure: " in printed and Path(printed.split("figure: ")[1].strip()).stat().st_size > 10_000


def test_an_untrained_head_is_its_seeds(few, start, tmp_path):
    tests, _ = common.test_pairs(tmp_path)
    again = [accuracy.untrained(start, seed, tests)["test_id"]["nll"] for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


# ---- options --------------------------------------------------------------------------------------------------------

def test_the_table_of_options(fakes, monkeypatch, capsys):
    given = fakes(options)
    rows = {"trained so": [options.judge(Path(f"5-{s}"), None, {}) for s in (0, 1)]}
    del rows["trained so"][1]["test_id"]["corr_length"]
    monkeypatch.setattr(options, "in_one_place", lambda runs, tests: rows)
    options.main(given)
    printed = capsys.readouterr().out
    assert line_of(printed, "length-alpha 25, center 0.01")[3:6] == ["0.64", "±", "0.03"]  # i = 6
    assert line_of(printed, "trained so")[15] == "-"  # undefined on one seed
    assert "trained so: expected accuracy 0.100 ± 0.000 against none on the same seed (2 of 2 better)" in printed
    assert "none: expected" not in printed and "figure: " in printed


def test_the_penalty_in_one_place_only(monkeypatch):
    """The rule of the same seed's penalised model goes to the plain one, whichever it is."""
    models = {Path(f"{name}-{s}"): SimpleNamespace(length_rule=rule)
              for s in (0, 1) for name, rule in (("penalised", {"penalty": 0.03, "mean": 20.0 + s}), ("plain", None))}
    names = {id(model): run.name for run, model in models.items()}
    monkeypatch.setattr(options, "load", lambda run: (models[run], None))
    monkeypatch.setattr(options, "judge", lambda model, *_: (names[id(model)], model.length_rule))
    runs = {"length-penalty 0.03": [Path("penalised-0"), Path("penalised-1")],
            "none": [Path("plain-0"), Path("plain-1")]}
    assert options.in_one_place(runs, {}) == {
        "length-penalty 0.03, scored without": [("penalised-0", None), ("penalised-1", None)],
        "none, penalty 0.03 in scoring only": [("plain-0", {"penalty": 0.03, "mean": 20.0}),
                                               ("plain-1", {"penalty": 0.03, "mean": 21.0})]}


# ---- overfit --------------------------------------------------------------------------------------------------------

def test_the_last_pass_over_the_training_pairs(tmp_path):
    """Six steps of two passes: the last three."""
    steps = [{"rewards/accuracies": share} for share in (0.1, 0.2, 0.3, 0.6, 0.9, 0.9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert overfit.last_pass(tmp_path, 2) == pytest.approx(0.8) and overfit.last_pass(tmp_path, 1) == pytest.approx(0.5)


def test_the_table_of_passes(fakes, monkeypatch, capsys):
    given = fakes(overfit)
    monkeypatch.setattr(overfit, "last_pass", lambda run, epochs: epochs / 16)
    monkeypatch.setattr(overfit, "scored", lambda *_: [{"reward_chosen": 1.0, "reward_rejected": 0.0}])
    overfit.main(given)
    printed = capsys.readouterr().out
    assert printed.startswith("500 training pairs;") and "figure: " in printed
    rows = [line.split() for line in printed.splitlines()[3:8]]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    assert rows[3][1:7] == ["0.50", "±", "0.00", "0.58", "±", "0.03"]  # i = 3


# ---- real data ------------------------------------------------------------------------------------------------------

def report(accuracy_, corr_length, error=0.01):
    measures = {"n_pairs": [100, 0.0], "n_clusters": [100, 0.0], "accuracy": [accuracy_, error], "nll": [0.6, 0.0],
                "calibration_error": [0.1, 0.0]}
    after = {**measures, **({} if corr_length is None else {"corr_length": [corr_length, 0.0]})}
    return {"measures": {"test": {"before": {**measures, "accuracy": [0.5, 0.0]}, "after": after}},
            "baselines": {"test": {"longer wins": [0.4, 0.31, 0.5]}}}


def test_the_table_of_real_data():
    """Mean of 0.6 and 0.7 of 100 pairs: Wilson's interval of 65 of 100 is 0.553 to 0.736. Constant rewards have no
    correlation with length."""
    printed = real_data.table([report(0.6, 0.2), report(0.7, 0.4)])
    assert line_of(printed, "reward model, trained") == ["0.650", "±", "0.071", "0.553", "to", "0.736"]
    assert line_of(printed, "untrained head")[:3] == ["0.500", "±", "0.000"]
    assert line_of(printed, "longer wins") == ["0.400", "0.310", "to", "0.500"]
    assert printed.endswith("correlation of score and length 0.30 ± 0.14")
    clustered = line_of(real_data.table([report(0.5, 0.2, error=0.1)]), "reward model, trained")
    assert clustered[-3:] == ["0.318", "to", "0.682"]  # like 100 / 99 * 0.25 / 0.1^2 = 25.25 pairs
    assert real_data.table([report(0.6, 0.2), report(0.7, None)]).endswith("correlation of score and length -")


def test_the_file_may_stand_behind_the_model(monkeypatch, tmp_path, capsys):
    started = []
    (tmp_path / "report.json").write_text(json.dumps(report(0.6, 0.2)))
    monkeypatch.setattr(real_data, "train_all", lambda runs, jobs: started.extend(runs) or [tmp_path] * len(runs))
    real_data.main(["--seeds", "1", "--model", "DIR", "FILE", "--batch-size", "8", "--rows", "64"])
    assert started == [("train_rm.py", ["--data", "FILE", "--seed", 0, "--out", "runs", "--model", "DIR",
                                        "--batch-size", "8", "--rows", 64])]
    assert capsys.readouterr().out.startswith("FILE: 100 held-out pairs.")
