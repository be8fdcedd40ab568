"""Files that are whole or not there, one process on a run at a time, and a disk that refuses."""
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, is_one_line, run_command
from safetensors import SafetensorError

import train_po
from nanopref.errors import UserError
from nanopref.run import disk, training
from nanopref.run.config import RunConfig
from nanopref.run.disk import PARTIAL, alone_in, begin, remove, write, write_json

NO_ROOM = (OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EROFS, "Read-only file system"),
           OSError(errno.EFBIG, "File too large"), SafetensorError("I/O error: No space left on device (os error 28)"),
           Exception("No space left on device (os error 28)"))  # as tokenizers raises it


@pytest.mark.parametrize("error", NO_ROOM, ids=repr)
def test_what_cannot_be_written_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def half(partial):
        partial.write_text('{"ne')
        raise error
    with pytest.raises(UserError, match=r"file.json cannot be written: .*\. Make room, .* --resume"):
        write(path, half)
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["file.json"]


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", object())


def test_a_file_under_a_file(tmp_path):
    """Even the administrator, who may write anywhere, cannot write there."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        write(tmp_path / "taken" / "file", "text")


def test_a_folder_disappears_in_one_step(tmp_path, monkeypatch):
    """Killed while its files are deleted one by one, nothing is left under its name."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def stop(path, **_):
        if path.exists():
            raise KeyboardInterrupt
    monkeypatch.setattr(disk.shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        remove(folder)
    assert not folder.exists()
    monkeypatch.undo()
    begin(tmp_path, {})
    assert os.listdir(tmp_path) == ["config.json"]  # what was left is cleared away
    remove(folder)  # nothing there, nothing to do


def test_the_report_goes_before_all_else(tmp_path, monkeypatch):
    """It says that the run is done: while anything is written anew, it must not."""
    write_json(tmp_path / "report.json", {})
    (tmp_path / f"{PARTIAL}1-figure.png").write_text("")
    monkeypatch.setattr(disk, "write_json", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, {})
    assert not os.listdir(tmp_path)


def in_another_process(folder):
    """What happens to a process that wants the same run."""
    code = ("import sys; from pathlib import Path; from nanopref.run.cli import exit_on_user_error\n"
            "from nanopref.run.disk import alone_in\n"
            "def main():\n    with alone_in(Path(sys.argv[1])): print('mine')\n"
            "exit_on_user_error(main)")
    return subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)


def test_one_process_at_a_time(tmp_path):
    with alone_in(tmp_path / "run"):
        second = in_another_process(tmp_path / "run")
        assert is_one_line(second.returncode, second.stderr)
        assert f"process {os.getpid()} works on this very run: wait for it" in second.stderr
    assert in_another_process(tmp_path / "run").stdout == "mine\n"


def run(pairs, start, out, **settings):
    settings = dict(loss="dpo", data=str(pairs), model=str(start), epochs=1, batch_size=8, max_length=64, prompts=2,
                    device="cpu", out=str(out)) | settings
    return train_po.train(RunConfig(**settings))


def test_the_lock_is_given_up_at_the_end_and_after_a_mistake(pairs, start, tmp_path, monkeypatch, no_figure):
    monkeypatch.setattr(train_po, "report", lambda *given: (_ for _ in ()).throw(UserError("stopped")))
    with pytest.raises(UserError, match="stopped"):
        run(pairs, start, tmp_path)
    monkeypatch.undo()
    folder = run(pairs, start, tmp_path)
    with alone_in(folder):
        with pytest.raises(UserError, match="works on this very run"):
            run(pairs, start, tmp_path)


def interrupted(pairs, start, out, monkeypatch):
    """The folder of a run that stopped after a checkpoint."""
    monkeypatch.setattr(training.Checkpoints, "is_due", lambda self, step: step == 3)
    original, seen = train_po.step_metrics, []

    def stop(parts):
        seen.append(1)
        if len(seen) == 6:
            raise UserError("stopped")
        return original(parts)
    monkeypatch.setattr(train_po, "step_metrics", stop)
    with pytest.raises(UserError, match="stopped"):
        run(pairs, start, out)
    monkeypatch.undo()
    return next((out / "pairs").glob("dpo-*"))


def test_a_log_shorter_than_its_checkpoint_is_one_line(pairs, start, tmp_path, monkeypatch, no_figure):
    folder = interrupted(pairs, start, tmp_path, monkeypatch)
    rows = (folder / "metrics.jsonl").read_text().splitlines(True)
    assert len(rows) == 5
    (folder / "metrics.jsonl").write_text("".join(rows[:2]) + rows[2][:10])
    with pytest.raises(UserError, match="has 3 rows, but the checkpoint beside it was made after step 4: .* Delete"):
        run(pairs, start, tmp_path, resume=True)
    assert (folder / "checkpoint").exists()
    (folder / "metrics.jsonl").write_text("".join(rows[:3]) + "damaged\n")
    with pytest.raises(UserError, match="row 4 is damaged.* Delete"):
        run(pairs, start, tmp_path, resume=True)


def test_nothing_to_resume_is_said(pairs, start, tmp_path, capsys, no_figure):
    folder = run(pairs, start, tmp_path, resume=True)
    assert f"--resume: nothing to resume in {folder}, so this begins at step 0" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_resume_goes_on(pairs, start, tmp_path, monkeypatch, no_figure):
    whole = run(pairs, start, tmp_path / "whole")
    folder = interrupted(pairs, start, tmp_path, monkeypatch)
    monkeypatch.setattr("nanopref.run.checkpoint.save_file", lambda *given, **_: (_ for _ in ()).throw(NO_ROOM[3]))
    command = ["train_po.py", "--loss", "dpo", "--data", pairs, "--model", start, "--epochs", 1, "--batch-size", 8,
               "--max-length", 64, "--prompts", 2, "--device", "cpu", "--out", tmp_path, "--resume"]
    code, _, err = run_command(*command)
    assert code == 2 and err.splitlines()[-1].startswith(f"error: {folder / 'model'} cannot be written: I/O error")
    monkeypatch.undo()
    run(pairs, start, tmp_path, resume=True)
    for name in ("model/model.safetensors", "metrics.jsonl", "answers.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("command", [("train_po.py", "--help"), ("-m", "nanopref.judge.look", "--help")])
def test_ctrl_c_during_the_imports_is_quiet(command):
    started = subprocess.Popen([sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    time.sleep(0.5)  # torch takes longer
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == -signal.SIGINT and not err and not out


def test_an_import_elsewhere_leaves_ctrl_c_alone():
    code = "import signal, nanopref; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.slow
def test_the_campaign_loses_nothing():
    done = subprocess.run([sys.executable, "tests/campaign.py", "--every", "8"], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]
    assert "lost: 0" in done.stdout
