"""Whatever a file or a command line holds: no traceback, nothing that hangs, and every message is one line of at most
300 characters that a terminal shows and does not obey. A few hundred broken inputs here, ten thousand where it may take
minutes; the seed is the number of the input."""
import collections
import contextlib
import itertools
import os
import random
import re
import shutil
import signal

import pytest
from commands import run_command
from fuzz import broken_file, broken_model, broken_parquet, command

from nanopref.data.examples import encode
from nanopref.errors import UserError
from nanopref.run import dataset, training
from nanopref.run.checkpoint import digest, load_model
from nanopref.run.config import SHIPPED_BASE, DataConfig

SECONDS = 20  # for one file, which has a dozen rows


@contextlib.contextmanager
def limited(seconds):
    """TimeoutError for what takes longer."""
    def stop(*_):
        raise TimeoutError(f"still running after {seconds} s")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(path, tokenizer, strict, axis) -> str:
    """"read" or "message" of one file on the way that train_po.py takes; anything else is raised."""
    try:
        with limited(SECONDS):
            splits = dataset.load(DataConfig(data=str(path), strict=strict, axis=axis))
            counts = [encode(tokenizer, splits.train, inputs, 512)[1] for inputs in (("w", "l"), ("w", "between", "l"))]
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) <= 300, str(error)
        return "message"
    for note in itertools.chain(splits.notes, *counts):
        assert note.isprintable(), note
    return "read"


def outcomes(folder, seeds, broken) -> collections.Counter:
    """How often files ended in what. `broken(rng)` gives (suffix, bytes)."""
    tokenizer, counted = load_model(SHIPPED_BASE)[1], collections.Counter()
    for seed in seeds:
        suffix, content = broken(random.Random(seed))
        path = folder / f"d{suffix}"
        path.write_bytes(content)
        axis = "better" if b"better_response_id" in content and seed % 9 else None
        for strict in (False, True):
            try:
                counted[outcome(path, tokenizer, strict, axis)] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, strict={strict}: {type(error).__name__}") from error
    return counted


def test_broken_lines(tmp_path):
    counted = outcomes(tmp_path, range(300), broken_file)
    assert min(counted["read"], counted["message"]) > 100, "both ways of the reader are tried"


@pytest.mark.slow
def test_ten_thousand_broken_lines(tmp_path):
    outcomes(tmp_path, range(300, 10_300), broken_file)


def test_damaged_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    counted = outcomes(tmp_path, range(60), broken_parquet)
    assert min(counted["read"], counted["message"]) > 5


@pytest.mark.slow
def test_four_hundred_damaged_parquet_files(tmp_path):
    """And ten times as many: one in a thousand raises what no other does."""
    pytest.importorskip("pyarrow")
    outcomes(tmp_path, range(60, 4060), broken_parquet)


@pytest.fixture
def one_step(monkeypatch):
    """A run that starts ends after its first step, before its report."""
    real = training.batches
    monkeypatch.setattr(training, "batches", lambda *given: itertools.islice(real(*given), 1))
    for module, name in (("report", "report"), ("report_rm", "report_rm")):
        monkeypatch.setattr(f"nanopref.judge.{module}.{name}", lambda *given: None)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def ends_well(words) -> bool:
    """Whether a command ran, or said in one line why not."""
    try:
        with limited(60):
            code, out, err = run_command(*words)
    except BaseException as error:
        raise AssertionError(f"{' '.join(map(ascii, words))[:500]}: {type(error).__name__}") from error
    *progress, line = re.split("[\r\n]", err.strip()) if code else [""]
    assert code in (0, 2) and line.isprintable() and len(line) <= 300, ascii(line)
    assert all(re.match("$|[a-z -]+: +[0-9]+%", bar) for bar in progress), ascii(err)
    assert all(text.isprintable() for text in out.splitlines()), ascii(out)
    return code == 0


def run_commands(seeds, folder, pairs, start) -> list:
    return [ends_well(command(random.Random(seed), folder / str(seed), pairs, start)) for seed in seeds]


def test_broken_command_lines(pairs, start, tmp_path, one_step):
    """Each option of both scripts with values of all kinds, on a run of one step."""
    ran = run_commands(range(60), tmp_path, pairs, start)
    assert 5 < sum(ran) < 55, "some run and some do not"


@pytest.mark.slow
def test_a_thousand_broken_command_lines(pairs, start, tmp_path, one_step):
    run_commands(range(60, 1060), tmp_path, pairs, start)


def load_broken(seeds, good, folder) -> collections.Counter:
    """How often model folders were loaded or refused; a policy, a reward model and a digest of each."""
    counted = collections.Counter()
    for seed in seeds:
        path = folder / str(seed)
        broken_model(random.Random(seed), good, path)
        for reward in (False, True):
            try:
                with limited(15):
                    digest(path)
                    model, tokenizer = load_model(path, reward=reward)
                counted["loaded"] += 1
                assert all(parameter.isfinite().all() for parameter in model.parameters())
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) <= 300, str(error)
                counted["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, reward {reward}: {type(error).__name__}: {error}"[:500]) from error
        shutil.rmtree(path)
    return counted


def test_broken_model_folders(start, tmp_path, monkeypatch):
    monkeypatch.setattr("nanopref.sandbox.SECONDS", 0.5)
    counted = load_broken(range(30), start, tmp_path)
    assert counted["loaded"] > 2 and counted["refused"] > 30


@pytest.mark.slow
def test_six_hundred_broken_model_folders(start, tmp_path, monkeypatch):
    monkeypatch.setattr("nanopref.sandbox.SECONDS", 2)
    load_broken(range(30, 630), start, tmp_path)
