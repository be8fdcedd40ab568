"""Runs over seeds: which are started when, what is reused, and what a mistake on the command line says."""
import importlib
import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import train_rm
from nanopref.errors import UserError
from nanopref.findings import acceptance, seeds
from nanopref.findings.seeds import folder_of, over_seeds, train_all
from nanopref.run.cli import parse_rm
from nanopref.run.reuse import report_code, run_folder

FINDINGS = ("accuracy", "options", "overfit", "best_of_n", "pluralism", "two_by_two", "real_data")
COMMANDS = {**{name: importlib.import_module(f"nanopref.findings.{name}").main for name in FINDINGS},
            "acceptance": acceptance.main}


@pytest.fixture
def started(monkeypatch):
    """Runs are started, but train nothing: (what was started, in order; how many at a time in each pool of threads)."""
    runs, at_a_time = [], []

    def run(command, **given):
        assert given["env"]["OMP_NUM_THREADS"] == "1"
        runs.append(" ".join(command[2:]))
        time.sleep(0.03)
        return SimpleNamespace(returncode=int("0.5" in command), stderr="error: no such luck")

    monkeypatch.setattr(seeds, "ThreadPoolExecutor", lambda n: at_a_time.append(n) or ThreadPoolExecutor(n))
    monkeypatch.setattr(seeds.subprocess, "run", run)
    monkeypatch.setattr(seeds, "folder_of", lambda config: f"{config.seed} {config.batch_size}")
    return runs, at_a_time


# ---- command lines --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, flag", [
    (name, flag) for name in COMMANDS for flag in ("--seeds", "--jobs", "--rows", "--prompts", "--samples")
    if name != "acceptance" or flag in ("--seeds", "--jobs")])  # the others go to train_po.py, which checks them
def test_a_count_below_one_is_answered_in_one_line(name, flag, monkeypatch, capsys):
    """Options that a command lacks are errors, too; nothing may start."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a run was started"))
    given = ["FILE"] if name == "real_data" else []
    for value in ("0", "-1", "x", "1.5"):
        with pytest.raises(SystemExit) as stop:
            COMMANDS[name]([*given, flag, value])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_what_would_be_taken_for_something_else_is_refused(monkeypatch, capsys):
    """--seed is no --seeds; and a seed or loss for all of acceptance's runs would make one run of many."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a run was started"))
    for name, given in (("accuracy", ["--seed", "1"]), ("real_data", ["FILE", "--seed", "1"]),
                        ("acceptance", ["--seed", "1"]), ("acceptance", ["--loss=dpo"]), ("acceptance", ["--model", "base"])):
        with pytest.raises(SystemExit) as stop:
            COMMANDS[name](given)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


# ---- runs -----------------------------------------------------------------------------------------------------------

def grid(*more):
    return [("train_rm.py", ["--seed", seed, "--batch-size", size, *more]) for size in (8, 16) for seed in (0, 1, 2)]


def test_runs_start_in_order_jobs_at_a_time(started):
    runs, at_a_time = started
    assert train_all(grid("--model", "DIR"), 2) == ["0 8", "1 8", "2 8", "0 16", "1 16", "2 16"]
    assert at_a_time[-1] == 2 and len(runs) == 6
    runs.clear()
    train_all(grid("--model", "DIR"), 1)
    assert runs == [" ".join(map(str, arguments)) for _, arguments in grid("--model", "DIR")]


def test_the_first_run_of_a_seed_trains_its_sft_model_before_the_others_start(started, pairs):
    """On the world its first runs may share the machine, the base model ships; on a file the first trains that, too."""
    runs, at_a_time = started
    by_size = [("train_rm.py", ["--seed", seed, "--batch-size", size]) for seed in (0, 1, 2) for size in (8, 16)]
    assert train_all(by_size, 3) == ["0 8", "0 16", "1 8", "1 16", "2 8", "2 16"]
    assert {run[-2:] for run in runs[:3]} == {" 8"} and {run[-2:] for run in runs[3:]} == {"16"}
    assert at_a_time == [3, 3]
    train_all([(script, [*arguments, "--data", pairs]) for script, arguments in by_size], 3)
    assert at_a_time[2:] == [1, 3]


def test_a_failed_run_ends_it_with_what_it_said(started):
    """Runs that wait are dropped; the one that has begun beside the failed one may end."""
    runs, _ = started
    failing = ("train_rm.py", ["--model", "DIR", "--lr", 0.5])
    with pytest.raises(UserError, match="train_rm.py --model DIR --lr 0.5 failed: error: no such luck"):
        train_all([failing, *grid("--model", "DIR"), *grid("--model", "OTHER")], 1)
    assert len(runs) < 13


def test_what_is_done_is_reused_and_not_trained_again(start, pairs, tmp_path, monkeypatch, capsys):
    """train_rm.py itself says so of the folder that is named here."""
    arguments = ["--model", start, "--data", pairs, "--out", tmp_path]
    config = parse_rm(list(map(str, arguments)))
    shutil.copytree(start, folder_of(config) / "model")
    (folder_of(config) / "config.json").write_text('{"prompts": 200}')
    (folder_of(config) / "report.json").write_text(json.dumps({"code": report_code(config)}))
    monkeypatch.setattr(seeds.subprocess, "run", lambda command, **_: SimpleNamespace(
        returncode=0, trained=train_rm.train(parse_rm(command[2:]))))
    assert train_all([("train_rm.py", arguments)], 1) == [folder_of(config)]
    assert f"reusing {folder_of(config)}" in capsys.readouterr().out


def test_a_folder_is_named_by_the_stages_before_it(start, pairs, tmp_path):
    """rm on sft on base on a file's own text: each name depends on the weights of the stage before."""
    config = parse_rm(["--data", str(pairs), "--out", str(tmp_path), "--seed", "3", "--precision", "fp32"])
    sft = config.before()
    base = sft.before()
    assert (config.stage, sft.stage, base.stage, folder_of(base)) == ("rm", "sft", "base", run_folder(base, None))
    shutil.copytree(start, folder_of(base) / "model")
    assert folder_of(sft) == run_folder(sft, folder_of(base) / "model")
    shutil.copytree(start, folder_of(sft) / "model")
    assert folder_of(config) == run_folder(config, folder_of(sft) / "model") != run_folder(config, None)


def test_mean_and_spread_by_hand():
    """1, 2, 3: mean 2, variance (1 + 0 + 1) / 2 = 1. One seed has no spread; a measure may be undefined."""
    assert over_seeds([1.0, 2.0, 3.0]) == "2.00 ± 1.00" and over_seeds([0.25], 3) == "0.250 ± 0.000"
    assert over_seeds([1.0, None]) == "-"
