"""torchrun: two processes take the steps of one. Two gloo processes on the CPU, started as a user starts them: slow."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_po
import train_rm
from nanopref.errors import UserError
from nanopref.losses import Seq
from nanopref.run import distributed
from nanopref.run.config import RunConfig

ROOT = Path(__file__).parent.parent
RUNS = [dict(loss="kto"), dict(loss="cpo"), dict(loss="sft", accumulate=2), dict(loss="rm", accumulate=2),
        dict(loss="dpo", epochs=2)]
# Starts RUNS one after the other. The second process may not write under the folder `out`, and dies in the last run.
SEVERAL = """
import json, os, sys
import train_po, train_rm
from nanopref.run import training
from nanopref.run.config import RunConfig

runs, training.SAVE_EVERY, is_second = json.loads(sys.argv[1]), 0, os.environ["RANK"] == "1"

def check(event, arguments):
    changes = event in ("os.mkdir", "os.rename", "os.remove")
    if (changes or event == "open" and set(arguments[1] or "") & set("wax+")) and runs[0]["out"] in str(arguments[0]):
        os.write(2, f"the second process writes: {event} {arguments[0]}".encode())
        os._exit(3)

def die_after_7_steps(parts, seen=[]):
    seen.append(1)
    if is_second and len(seen) == 8:
        os._exit(4)
    return metrics(parts)

if is_second:
    sys.addaudithook(check)
for run in runs:
    if run["loss"] == "dpo":
        metrics, train_po.step_metrics = train_po.step_metrics, die_after_7_steps
    (train_rm if run["loss"] == "rm" else train_po).train(RunConfig(**run))
"""


def settings(pairs, start, out):
    return dict(data=str(pairs), model=str(start), epochs=1, batch_size=8, prompts=5, max_length=64, device="cpu",
                out=str(out), lr=1e-3)


def torchrun(*arguments):
    """A finished `torchrun --nproc_per_node=2 ...` in the repository."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                           *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def assert_same_curve(two, one):
    """Every logged number of every step, to float32 sums in another order: some steps of 4e-6 of a log-prob of 60 nats,
    and 1e-7 of their size in the others, grown by six to twelve updates. A wrong share of anything is off by 1e-3."""
    assert len(two) == len(one)
    for a, b in zip(two, one):
        assert a == pytest.approx(b, rel=1e-5, abs=2e-5)


@pytest.fixture(scope="module")
def several(pairs, start, tmp_path_factory):
    """(folder with the runs of two processes, what was printed)."""
    out = tmp_path_factory.mktemp("two")
    (out / "several.py").write_text(SEVERAL)
    done = torchrun(out / "several.py", json.dumps([{**settings(pairs, start, out / "runs"), **run} for run in RUNS]))
    print(done.stdout + done.stderr)
    return out / "runs", done


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS[:-1], ids=lambda run: run["loss"])
def test_two_processes_take_the_steps_of_one(run, several, pairs, start, tmp_path):
    """The global batch stays what it is: same losses, metrics, gradient norms and weights (of what they move, rounding
    is 1e-7; 1e-4 leaves room for other processors). KTO's KL, the token mean of CPO and SFT and micro-batches are sums
    over both processes."""
    script = train_rm if run["loss"] == "rm" else train_po
    one = script.train(RunConfig(**{**settings(pairs, start, tmp_path), **run}))
    two = several[0] / one.relative_to(tmp_path)
    assert_same_curve(log(two), log(one))
    before, a, b = (load_file(folder / "model.safetensors") for folder in (start, two / "model", one / "model"))
    moved, apart = (sum((x[name] - b[name]).abs().sum() for name in before if name in b) for x in (before, a))
    assert apart < 1e-4 * moved
    assert (two / "report.json").exists() and (two / "figure.png").exists()


@pytest.mark.slow
def test_one_process_prints(several):
    out = several[1].stdout
    assert out.count("measured peak of memory") == len(RUNS) - 1  # the last one does not get there
    assert out.count("What happened") == 3  # kto, cpo and rm
    assert "the second process writes" not in several[1].stderr


@pytest.mark.slow
def test_killed_with_two_processes_resumed_with_one(several, pairs, start, tmp_path):
    """One process dies at the end of its 8th step of 12: the other, which may just log that step, does not go on alone,
    and what they saved is taken up by one process as if it had been its own."""
    assert several[1].returncode != 0 and "exitcode  : 4" in several[1].stderr
    run = {**settings(pairs, start, several[0]), **RUNS[-1]}
    folder = next((several[0] / "pairs").glob("dpo-*"))
    assert len(log(folder)) in (7, 8) and not (folder / "model").exists()
    with pytest.raises(UserError, match="was interrupted: add --resume"):
        train_po.train(RunConfig(**run))
    assert train_po.train(RunConfig(**run, resume=True)) == folder
    whole = train_po.train(RunConfig(**{**run, "out": str(tmp_path)}))
    assert_same_curve(log(folder), log(whole))


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_one_line(pairs, start, tmp_path):
    """torchrun adds a report of its own, and ends with 1 whatever its processes say."""
    done = torchrun("train_po.py", "--loss", "dpo", "--data", pairs, "--model", start, "--out", tmp_path,
                    "--batch-size", 6, "--accumulate", 2)
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: po: --batch-size 6 must be a multiple of --accumulate 2 times the 2 processes; or train "
                    "this stage first without torchrun"]


def test_without_torchrun_nothing_is_set_up():
    seq = Seq(torch.zeros(2), torch.zeros(2), torch.ones(2))
    distributed.start(torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    assert distributed.gathered(seq) is seq and distributed.parallel(seq) is seq and distributed.together([1]) == [1]


@pytest.mark.parametrize("rank", range(3))
def test_shared_work_comes_back_in_order(rank, monkeypatch):
    """Five items for three processes: every other share than one's own comes from the others."""
    shares = [[0, 30], [10, 40], [20]]

    def all_gather(found, own):
        assert own == shares[rank]
        found[:] = shares

    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    assert distributed.shared(lambda own: [10 * item for item in own], list(range(5))) == [0, 10, 20, 30, 40]


def test_a_device_without_an_engine_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="mps cannot be shared by 2 processes: add --device cpu"):
        distributed.start(torch.device("mps"))
