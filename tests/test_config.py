"""What a run's configuration resolves, what it refuses, and what waits for the device."""
import json

import pytest
import torch

from nanopref.errors import UserError
from nanopref.run import config as config_module, dataset
from nanopref.run.config import FILE_BASE, PRETRAINED, REWARD_OPTIONS, STAGES, DataConfig, RunConfig
from nanopref.run.reuse import run_folder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def refuse(*_, **__):
    raise AssertionError("a device was touched")


@pytest.mark.parametrize("settings", [{"loss": "dpo"}, {"loss": "rm", "device": "cuda"},
                                      {"loss": "sft", "precision": "tf32", "device": "no-such-device"}])
def test_constructing_touches_no_device(settings, monkeypatch):
    monkeypatch.setattr(config_module, "pick_device", refuse)
    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    config = RunConfig(**settings)
    assert config.precision == config.before().precision == settings.get("precision")


def test_the_device_decides_the_precision():
    config = RunConfig(loss="dpo", lr=0.5)
    assert (config.on(CPU).precision, config.on(CUDA).precision) == ("fp32", "bf16")
    assert config.precision is None and config.on(CPU).lr == 0.5
    assert RunConfig(loss="dpo", precision="bf16").on(CPU).precision == "bf16"
    tf32 = RunConfig(loss="dpo", precision="tf32")
    assert tf32.on(CUDA).precision == "tf32"
    with pytest.raises(UserError, match="tf32 is a format of NVIDIA GPUs"):
        tf32.on(CPU)


def test_a_folder_is_named_on_a_device_only():
    config = RunConfig(loss="sft", model="scratch")
    with pytest.raises(ValueError, match="the precision is not known yet"):
        run_folder(config, None)
    assert run_folder(config.on(CPU), None) != run_folder(config.on(CUDA), None)
    assert run_folder(RunConfig(loss="sft", model="scratch", precision="fp32"), None) == run_folder(config.on(CPU), None)


@pytest.mark.parametrize("settings, stage, defaults", [
    ({"loss": "dpo"}, "po", STAGES["po"]), ({"loss": "sft"}, "sft", STAGES["sft"]),
    ({"loss": "sft", "model": "scratch"}, "base", STAGES["base"]),
    ({"loss": "rm", "model": "DIR"}, "rm", PRETRAINED["rm"]),
    ({"loss": "sft", "model": "scratch", "data": "my.jsonl"}, "base", FILE_BASE)])
def test_what_is_not_given_is_the_stage_s_default(settings, stage, defaults):
    config = RunConfig(**settings)
    assert config.stage == stage and {name: getattr(config, name) for name in defaults} == defaults
    assert RunConfig(**settings, lr=0.25).lr == 0.25
    config.lr = None
    config.resolve_defaults()
    assert config.lr == defaults["lr"]


def test_knobs_not_given_are_the_loss_s_defaults():
    assert RunConfig(loss="simpo", knobs={"gamma": 0.5}).knobs == {"beta": 1.5, "gamma": 0.5}
    assert RunConfig(loss="rm", knobs={"center": 0.1}).knobs == {**REWARD_OPTIONS, "center": 0.1}
    assert REWARD_OPTIONS["center"] == 0.0


def test_validation_resolves_nothing():
    config = RunConfig(loss="dpo")
    config.validate()
    config.lr = 7.0
    with pytest.raises(UserError, match="--lr must lie between 0 and 1, got 7.0"):
        config.validate()
    assert config.lr == 7.0


@pytest.mark.parametrize("settings, message", [
    ({"axis": "safer"}, "go with --data FILE"), ({"system": ""}, "go with --data FILE"),
    ({"rows": 0}, "--rows must be at least 1, got 0")])
def test_data_that_makes_no_sense(settings, message):
    for kind in (DataConfig, lambda **given: RunConfig(loss="dpo", **given)):
        with pytest.raises(UserError, match=message):
            kind(**settings)


def test_out_is_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        DataConfig(out=str(tmp_path / "file"))


def test_data_is_read_without_a_run(tmp_path):
    """The same rows for a DataConfig and for a run with these settings."""
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(path), "system": "Be brief.", "rows": 5}
    splits = dataset.load(DataConfig(**settings))
    assert splits == dataset.load(RunConfig(loss="rm", **settings))
    assert len(splits.train) == 5 and len(splits.tests["test"]) == 2
    assert splits.train[0].prompt[0] == {"role": "system", "content": "Be brief."}


def test_the_stage_before_knows_what_decides_about_it_too():
    """Else the SFT model of another seed, or one that has seen the test prompts, would be taken for this run's."""
    run = RunConfig(loss="dpo", seed=3, data="a.jsonl", test_data="b.jsonl", system="x", max_length=64, strict=True)
    for before in (run.before(), run.before().before()):
        assert (before.data, before.test_data, before.system, before.max_length, before.strict) == (
            "a.jsonl", "b.jsonl", "x", 64, True)
    assert run.before().seed == 3 and run.before().before().seed == 0  # one base model for all seeds


@pytest.fixture
def two_files(tmp_path):
    """Training and test data that share the prompt "both"."""
    for name, prompts in (("train", ("both", "a", "b")), ("test", ("both", "c"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"prompt": prompt, "chosen": "x", "rejected": "y"}) + "\n" for prompt in prompts))
    return dict(data=str(tmp_path / "train.jsonl"), test_data=str(tmp_path / "test.jsonl"))


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_no_prompt_is_trained_on_and_tested_on(two_files, system):
    splits = dataset.load(DataConfig(**two_files, system=system))
    asked = lambda rows: [row.prompt[-1]["content"] for row in rows]
    assert asked(splits.train) == asked(splits.sft) == ["a", "b"] and asked(splits.tests["test"]) == ["both", "c"]
    assert "1 training rows left out: their prompts are in the test data" in splits.notes


def test_every_seed_is_tested_on_the_same_prompts(pairs):
    """Or runs of two seeds could not be compared."""
    first, second = (dataset.load(DataConfig(data=str(pairs), seed=seed)).tests for seed in (0, 1))
    assert first == second
