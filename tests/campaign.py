"""Kill training at every change of a file, and see that nothing is lost.

    python tests/campaign.py              # every point of five tiny trainings, some minutes on two cores
    python tests/campaign.py --every 10   # every tenth point

A point is one change of a file or a folder that a training makes: a file opened for writing, written, renamed or
deleted. At each point, in a process of its own, the training is
- killed (SIGKILL) right before it,
- killed half-way through it, where something is written: half of the bytes are on the disk, or
- told from there on that the disk is full, which must end in one line and exit code 2;
then the same command is run again with --resume. It must end with the files of an undisturbed run, bit for bit:
weights, report, answers, log with every step once. And the same after a kill at 20 random moments.
"""
import argparse
import builtins
import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from conftest import SUBJECTS, TINY  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train_po  # noqa: E402
import train_rm  # noqa: E402
from nanopref.judge import measures, plots, plots_rm  # noqa: E402
from nanopref.run import checkpoint, reference  # noqa: E402
from nanopref.run.cli import exit_on_user_error  # noqa: E402
from nanopref.run.config import RunConfig  # noqa: E402
from nanopref.run.training import Checkpoints  # noqa: E402
from nanopref.text import ChatTokenizer  # noqa: E402

TRAININGS = {"dpo": dict(loss="dpo", model="start"), "kto": dict(loss="kto", model="start"),
             "sft": dict(loss="sft", model="start"), "rm": dict(loss="rm", model="start"),
             "base -> sft -> dpo": dict(loss="dpo", model="sft")}
MOMENTS = 20


def prepare(folder: Path) -> None:
    """The data and the tiny start model of all trainings, and what makes them small."""
    rows = [{"prompt": f"What is {s} {n}?", "chosen": f"It is {s} number {n}.", "rejected": f"I do not know {s}."}
            for s in SUBJECTS for n in range(3)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    model, tokenizer = checkpoint.new_model([json.dumps(row) for row in rows], 300, TINY)
    checkpoint.save_model(model, tokenizer, folder / "start")
    train_po.ARCHITECTURE, train_po.VOCABULARY = TINY, {False: 300}
    measures.MAX_NEW_TOKENS = 4
    Checkpoints.is_due = lambda self, step: step % 2 == 1
    plots.training_figure = plots_rm.reward_figure = lambda *given: plots.write(given[-1], "a figure")


def train(name: str, folder: Path, resume: bool) -> None:
    """One training in `folder`/runs, as its command would run it; ends the process."""
    os.chdir(folder)
    settings = TRAININGS[name] | dict(data="pairs.jsonl", epochs=1, batch_size=8, max_length=64, prompts=2,
                                      device="cpu")
    script = train_rm if settings["loss"] == "rm" else train_po
    exit_on_user_error(lambda: script.train(RunConfig(**settings, resume=resume)))


class Points:
    """Counts the changes of files under a folder, and does something at one of them. `what`: "count", "before", "half"
    or "full"."""

    def __init__(self, what="count", at=-1):
        self.what, self.at, self.seen = what, at, []
        self.is_full = False

    def change(self, path, refused=None) -> bool:
        """Before a change; whether it is to be done by half. `refused`: the exception of a full disk."""
        if self.is_full and refused:
            raise refused
        self.seen.append((str(path), refused is not None))
        if len(self.seen) - 1 != self.at:
            return False
        if self.what == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "full" and refused:
            self.is_full = True
            raise refused
        return self.what == "half"

    def watch(self) -> None:
        """From now on every change in this process is counted."""
        no_room = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            def changed(path, *rest, original=getattr(os, name), name=name, **more):
                self.change(path, no_room if name == "mkdir" else None)
                return original(path, *rest, **more)
            setattr(os, name, changed)
        opened = io.open

        def watched(path, mode="r", *rest, **more):
            if not isinstance(path, (str, Path)) or not set(mode) & set("wax") or str(path).startswith("/dev"):
                return opened(path, mode, *rest, **more)
            self.change(path, no_room)
            file = opened(path, mode, *rest, **more)
            write = file.write

            def by_half(data):
                half = self.change(path, no_room)
                write(data[:len(data) // 2] if half else data)
                if half:
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return len(data)

            file.write = by_half
            return file
        io.open = builtins.open = watched

        def whole(function, path_of, refused):
            def saved(*given, **more):
                path = path_of(given)
                half = self.change(path, refused)
                function(*given, **more)
                if half:
                    os.truncate(path, os.path.getsize(path) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return saved
        refused = SafetensorError("I/O error: No space left on device (os error 28)")
        checkpoint.save_file = reference.save_file = whole(safetensors.torch.save_file, lambda given: given[1], refused)
        ChatTokenizer.save = whole(ChatTokenizer.save, lambda given: given[1] / "tokenizer.json",
                                   Exception("No space left on device (os error 28)"))


def in_child(name, folder, points=None, resume=False, kill_after=None) -> tuple[int, str, list]:
    """(exit status, standard error, points seen) of a training in a child process."""
    folder.mkdir(exist_ok=True)
    for given in ("pairs.jsonl", "start"):
        if not (folder / given).exists():
            (folder / given).symlink_to(folder.parent / given)
    log = folder / "log"
    log.write_text("")
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # the usual one is shared by all processes: one killed with it would hold it
        err, code = io.StringIO(), 1
        output = os.open(log, os.O_WRONLY)
        try:
            if points:
                points.watch()
            with redirect_stdout(io.StringIO()), redirect_stderr(err):
                train(name, folder, resume)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            err.write(f"Traceback: {error!r}")
        finally:
            os.write(output, json.dumps([err.getvalue(), points.seen if points else []]).encode())
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    said = log.read_text()
    return status, *(json.loads(said) if said else ("", []))


def files_of(folder: Path) -> dict:
    """{path: checksum} of all that a training has left; of config.json without "resume"."""
    found = {}
    for path in sorted((folder / "runs").rglob("*")):
        if path.is_file() and not path.name.endswith(".lock") and not path.name.startswith("partial-"):
            content = path.read_bytes()
            if path.name == "config.json" and path.parent.name != "model":
                content = json.dumps({**json.loads(content), "resume": None}).encode()
            found[str(path.relative_to(folder))] = zlib.crc32(content)
    return found


def attempt(given) -> str:
    """What was wrong after a training was disturbed at a point and resumed; "" if nothing was."""
    name, what, at, whole, folder = given
    if what == "moment":
        status, err, _ = in_child(name, folder, kill_after=at)
    else:
        status, err, _ = in_child(name, folder, Points(what, at))
    code = os.waitstatus_to_exitcode(status)
    lines = [line for line in err.splitlines() if "error" in line or "Traceback" in line]
    if what == "full" and not (code == 2 and len(lines) == 1 and "cannot be written" in err):
        return f"full disk: exit code {code}, {len(lines)} lines: {err[-300:]}"
    status, err, _ = in_child(name, folder, resume=True)
    if status:
        return f"resume: exit code {os.waitstatus_to_exitcode(status)}: {err[-300:]}"
    left = files_of(folder)
    if left != whole:
        return "files: " + ", ".join(path for path in left.keys() | whole.keys() if left.get(path) != whole.get(path))
    shutil.rmtree(folder)
    return ""


def campaign(every: int, jobs: int, names) -> int:
    """Runs it and prints the table; the number of points at which something was lost."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread: processes are forked
    lost, rows = [], []
    with tempfile.TemporaryDirectory() as top:
        prepare(Path(top))
        with redirect_stdout(io.StringIO()):
            for loss in ("dpo", "rm"):  # what is imported and parsed on the way is then there in every child
                train(loss, Path(top), resume=False)
        shutil.rmtree(Path(top) / "runs")
        for name in names:
            began = time.time()
            status, err, seen = in_child(name, Path(top) / "whole", Points())
            assert not status, err
            took, whole = time.time() - began, files_of(Path(top) / "whole")
            shutil.rmtree(Path(top) / "whole")
            rng = random.Random(name)
            todo = [("moment", rng.uniform(0, took)) for _ in range(MOMENTS)][::every]
            todo += [(what, at) for at, (_, writes) in list(enumerate(seen))[::every]
                     for what in (("before", "half", "full") if writes else ("before",))]
            given = [(name, what, at, whole, Path(top) / f"{len(rows)}-{i}") for i, (what, at) in enumerate(todo)]
            with multiprocessing.get_context("fork").Pool(jobs) as pool:
                problems = list(tqdm(pool.imap(attempt, given), name, len(given)))
            lost += [f"{name}, {what} {at} {seen[at][0] if what != 'moment' else ''}: {problem}"
                     for (what, at), problem in zip(todo, problems) if problem]
            count = lambda kind: sum(what == kind for what, _ in todo)
            rows.append([name, *(count(kind) for kind in ("before", "half", "full", "moment")),
                         sum(map(bool, problems))])
    print(f"{'training':20}{'before':>8}{'half-way':>10}{'disk full':>11}{'moments':>9}{'lost':>6}")
    for row in rows:
        print(f"{row[0]:20}{row[1]:>8}{row[2]:>10}{row[3]:>11}{row[4]:>9}{row[5]:>6}")
    print("\n".join([f"points tried: {sum(sum(row[1:5]) for row in rows)}, lost: {len(lost)}", *lost]))
    return len(lost)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--every", type=int, default=1, metavar="N", help="try every N-th point only (default: all)")
    p.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time (default: 2)")
    p.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS, metavar="NAME",
                   help=f"of {', '.join(TRAININGS)} (default: all)")
    args = p.parse_args()
    sys.exit(bool(campaign(args.every, args.jobs, args.trainings)))
