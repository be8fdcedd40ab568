"""train_po.py as its user meets it: same seed same weights, resume after a kill, exact accumulation, one-line
errors."""
import json
import shutil

import pytest
import torch
from commands import is_one_line, run_command, start_command
from safetensors.torch import load_file

import train_po
from nanopref import logps
from nanopref.errors import UserError
from nanopref.losses import LOSSES
from nanopref.run import training
from nanopref.run.checkpoint import load_model, save_model
from nanopref.run.cli import parse
from nanopref.run.config import RunConfig


@pytest.fixture
def no_report(monkeypatch):
    """Where only weights and metrics matter: answers and figure take ten times longer than this training."""
    with pytest.MonkeyPatch.context() as patch:  # its own, which a test's monkeypatch.undo() leaves alone
        patch.setattr(train_po, "report", lambda config, folder, *rest: (folder / "report.json").write_text("{}"))
        yield


def run(pairs, start, out, **changes):
    """The weights and the metrics of a short run."""
    settings = dict(loss="dpo", data=str(pairs), model=str(start), epochs=1, batch_size=8, prompts=4, max_length=64,
                    device="cpu", out=str(out), lr=1e-3)
    folder = train_po.train(RunConfig(**{**settings, **changes}))
    return load_file(folder / "model" / "model.safetensors"), [json.loads(x) for x in (folder / "metrics.jsonl").open()]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_reports(loss, pairs, start, tmp_path, capsys, request):
    """The figure is drawn for three losses that log different things: nothing of pairs, pairs, no accuracies."""
    if loss not in ("sft", "dpo", "kto"):
        request.getfixturevalue("no_figure")
    weights, metrics = run(pairs, start, tmp_path, loss=loss)
    assert not equal(weights, load_file(start / "model.safetensors"))
    assert len(metrics) == 54 // 8  # 60 rows less a tenth for testing
    folder = next((tmp_path / "pairs").glob(f"{loss}-seed0-*"))
    assert {"config.json", "metrics.jsonl", "answers.jsonl", "report.json", "figure.png", "model"} <= {
        p.name for p in folder.iterdir()}
    if loss != "sft":
        assert {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies", "grad_norm", "lr", "tokens"
                } <= metrics[0].keys()
        assert "hand-derived off by" in capsys.readouterr().out


def test_dpo_starts_at_log_2(pairs, start, tmp_path, no_report):
    _, metrics = run(pairs, start, tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)  # float32 sums of some ten log-probs
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[0]["rewards/accuracies"] == 0 and metrics[0]["rewards/ties"] == 1  # but for rounding


def test_same_seed_same_weights_other_seed_others(pairs, start, tmp_path, no_report):
    first, _ = run(pairs, start, tmp_path / "a")
    again, _ = run(pairs, start, tmp_path / "b")
    other, _ = run(pairs, start, tmp_path / "c", seed=1)
    assert equal(first, again) and not equal(first, other)


class Killed(Exception):
    pass


def test_resume_equals_uninterrupted_bit_for_bit(pairs, start, tmp_path, monkeypatch, no_report):
    whole, metrics = run(pairs, start, tmp_path / "whole", epochs=2)
    monkeypatch.setattr(training, "SAVE_EVERY", 0)  # save at once, then whenever saving has cost less than 5 %
    seen = []

    def killer(parts):
        seen.append(1)
        if len(seen) == 8:
            raise Killed
        return original(parts)

    original = train_po.step_metrics
    monkeypatch.setattr(train_po, "step_metrics", killer)
    with pytest.raises(Killed):
        run(pairs, start, tmp_path / "killed", epochs=2)
    monkeypatch.setattr(train_po, "step_metrics", original)
    with pytest.raises(UserError, match="was interrupted: add --resume"):  # a checkpoint is not thrown away unasked
        run(pairs, start, tmp_path / "killed", epochs=2)
    resumed, resumed_metrics = run(pairs, start, tmp_path / "killed", epochs=2, resume=True)
    assert equal(whole, resumed)
    assert metrics == resumed_metrics


def test_killed_before_its_report_a_run_is_not_trained_again(pairs, start, tmp_path, monkeypatch, capsys, no_figure):
    monkeypatch.setattr(train_po, "report", lambda *given: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(pairs, start, tmp_path)
    monkeypatch.undo()
    folder = next((tmp_path / "pairs").glob("dpo-*"))
    weights, log = (folder / "model" / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_text()
    run(pairs, start, tmp_path)
    assert "resuming at step 6 of 6" in capsys.readouterr().out and (folder / "report.json").exists()
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    assert (folder / "metrics.jsonl").read_text() == log


def test_fresh_leaves_nothing_of_the_run_before_to_resume_from(pairs, start, tmp_path, monkeypatch, capsys, no_report):
    """Killed before its first checkpoint, a redone run must not take up the old run's model, or an old checkpoint that
    a save killed between its renames has left."""
    whole, _ = run(pairs, start, tmp_path)
    folder = next((tmp_path / "pairs").glob("dpo-*"))
    shutil.copytree(folder / "model", folder / "checkpoint.old")
    monkeypatch.setattr(train_po, "step_metrics", lambda parts: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(pairs, start, tmp_path, fresh="run")
    monkeypatch.undo()
    capsys.readouterr()
    again, metrics = run(pairs, start, tmp_path, resume=True)
    assert "resuming" not in capsys.readouterr().out and equal(whole, again) and len(metrics) == 6


def test_more_prompts_are_answered_without_training_again(pairs, start, tmp_path, capsys, no_figure):
    run(pairs, start, tmp_path, prompts=2)
    capsys.readouterr()
    run(pairs, start, tmp_path, prompts=4)
    assert "resuming at step 6 of 6" in capsys.readouterr().out
    run(pairs, start, tmp_path, prompts=3)
    assert "done already" in capsys.readouterr().out
    answered = next((tmp_path / "pairs").glob("dpo-*/answers.jsonl")).read_text().splitlines()
    assert len(answered) == 2 * 4


def test_gradient_checkpointing_and_bf16(pairs, start, tmp_path, no_report):
    """Recomputed activations are the same numbers; bf16 rounds to 1/256, and six steps of 1e-3 do not amplify it."""
    weights, metrics = run(pairs, start, tmp_path / "plain")
    again, _ = run(pairs, start, tmp_path / "again", gradient_checkpointing=True)
    assert equal(weights, again)
    low, low_metrics = run(pairs, start, tmp_path / "low", precision="bf16")
    assert not equal(weights, low) and all(tensor.dtype == torch.float32 for tensor in low.values())  # master weights
    assert low_metrics[-1]["loss"] == pytest.approx(metrics[-1]["loss"], abs=0.02)


def test_a_start_stored_in_bf16_is_trained_and_judged_in_float32(pairs, start, tmp_path, no_figure):
    """At a learning rate of 1e-12 the policy stays its start: a KL of 0, to float32 rounding of sums of some ten
    log-probs. Judged in bfloat16 the start would differ by some 0.01 nats per token."""
    model, tokenizer = load_model(start)
    save_model(model.bfloat16(), tokenizer, tmp_path / "bf16")
    run(pairs, tmp_path / "bf16", tmp_path, lr=1e-12)
    report = json.loads(next((tmp_path / "pairs").glob("dpo-*/report.json")).read_text())
    assert abs(report["measures"]["test"]["policy"]["kl"][0]) < 1e-4


def test_a_context_shorter_than_the_data_is_refused(pairs, start, tmp_path):
    with pytest.raises(UserError, match="--max-length 129 is more than this model's context of 128 tokens: lower it"):
        run(pairs, start, tmp_path, max_length=129)


def test_a_system_message_reaches_the_prompt(pairs, start, tmp_path, capsys, no_report):
    run(pairs, start, tmp_path)
    plain = capsys.readouterr().out
    run(pairs, start, tmp_path, system="Be brief.")
    n_tokens = [int(out.split(" steps, ")[1].split(" tokens")[0].replace(",", ""))
                for out in (plain, capsys.readouterr().out)]
    assert n_tokens[1] > n_tokens[0] and len(list((tmp_path / "pairs").glob("dpo-*"))) == 2


@pytest.mark.parametrize("loss", ["dpo", "cpo", "sft"])
def test_accumulation_is_exact(loss, pairs, start, tmp_path, no_report):
    """4 micro-batches of 2 pairs or 1 of 8: equal up to float32 rounding, although their token counts differ.

    Compared on the first step's gradient norm and on the logged loss: Adam turns rounding in a near-zero gradient
    into a full step, so the weights are no fair measure.
    """
    _, once = run(pairs, start, tmp_path / "1", loss=loss)
    _, four = run(pairs, start, tmp_path / "4", loss=loss, accumulate=4)
    for key in ("loss", "grad_norm"):
        assert four[0][key] == pytest.approx(once[0][key], rel=1e-5)


def test_a_finished_run_is_reused_and_fresh_redoes_it(pairs, start, tmp_path, capsys, no_figure):
    run(pairs, start, tmp_path)
    folder = next((tmp_path / "pairs").glob("dpo-*"))
    written = (folder / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    run(pairs, start, tmp_path)
    assert "done already, reusing" in capsys.readouterr().out
    assert (folder / "report.json").stat().st_mtime_ns == written
    run(pairs, start, tmp_path, fresh="run")
    assert (folder / "report.json").stat().st_mtime_ns > written
    run(pairs, start, tmp_path, loss="ipo")
    assert "reference log-probs: reusing" in capsys.readouterr().out


def test_unpaired_data_trains_kto_and_is_refused_by_pair_losses(pairs, start, tmp_path, no_report):
    unpaired = tmp_path / "unpaired.jsonl"
    rows = [json.loads(line) for line in pairs.open()]
    sides = [(row, "chosen" if i % 3 else "rejected") for i, row in enumerate(rows)]
    rows = [{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for row, side in sides]
    unpaired.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, metrics = run(unpaired, start, tmp_path / "out", loss="kto")
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-6)  # half of each example's weight at policy = reference
    assert "kl" in metrics[0] and "rewards/accuracies" not in metrics[0]
    with pytest.raises(UserError, match="0 examples that dpo can use"):
        run(unpaired, start, tmp_path / "out", loss="dpo")


def test_divergence_stops_in_one_line(pairs, start, tmp_path, monkeypatch):
    nan = lambda model, b: logps.sequence_logps(model, b) * float("nan")
    monkeypatch.setattr(train_po, "sequence_logps", nan)
    with pytest.raises(UserError, match="diverged; lower --lr"):
        run(pairs, start, tmp_path)


@pytest.mark.parametrize("arguments, expected", [
    (["--loss", "dpo", "--betta", "1"], "unrecognized arguments: --betta"),
    (["--loss", "dop"], "invalid choice: 'dop'"),
    ([], "--loss"),
    (["--loss", "dpo", "--gamma", "1"], "dpo has no knob 'gamma'; it has: beta, label_smoothing"),
    (["--loss", "dpo", "--beta", "-1"], "beta must be a finite number above 0"),
    (["--loss", "dpo", "--lr", "7"], "--lr must lie between 0 and 1"),
    (["--loss", "dpo", "--epochs", "0"], "--epochs must be at least 1"),
    (["--loss", "dpo", "--rows", "-5"], "--rows must be at least 1"),
    (["--loss", "dpo", "--model", "scratch"], "it goes with --loss sft"),
    (["--loss", "dpo", "--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
    (["--loss", "dpo", "--model", "no-such-folder"], "no-such-folder"),
    (["--loss", "dpo", "--system", "Be brief."], "go with --data FILE"),
    (["--loss", "dpo", "--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--loss", "dpo", "--device", "abacus"], "--device abacus cannot be used here"),
    (["--loss", "dpo", "--batch-size", "10", "--accumulate", "3"], "must be a multiple"),
])
def test_mistakes_get_one_line_and_exit_code_2(arguments, expected, tmp_path):
    code, _, err = run_command("train_po.py", *arguments, "--out", tmp_path)
    assert is_one_line(code, err) and expected in err


def test_a_mistake_ends_the_process_itself_so(tmp_path):
    code, out, err = start_command("train_po.py", "--loss", "dpo", "--data", "no-such-file.jsonl", "--out", tmp_path)
    assert is_one_line(code, err) and "no-such-file.jsonl" in err and not out


def test_a_broken_data_file_names_the_line(pairs, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join(pairs.open().readlines()[:3]) + '{"prompt": "x", "chosen": "y"\n')
    code, _, err = run_command("train_po.py", "--loss", "dpo", "--data", broken, "--strict", "--out", tmp_path)
    assert is_one_line(code, err) and "line 4" in err


def test_a_truncated_start_model_is_one_line(pairs, start, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in start.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes()[:-100])
    code, _, err = run_command("train_po.py", "--loss", "dpo", "--data", pairs, "--model", damaged, "--out", tmp_path)
    assert is_one_line(code, err) and "damaged or incomplete" in err


def test_help_teaches_every_loss_and_knob():
    code, out, _ = run_command("train_po.py", "--help")
    assert code == 0
    for loss in LOSSES:
        assert f"\n{loss}:" in out
    assert "gamma=" in out and "1/nat" in out and "arXiv:2407.15229" in out


def test_knobs_reach_the_loss():
    config = parse(["--loss", "simpo", "--gamma", "0.5"])
    assert config.knobs == {"beta": 1.5, "gamma": 0.5}
