"""Commands as a user types them. A process of their own costs 2 s of imports, which this one has done."""
import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent


def run_command(*words):
    """(exit code, standard output, standard error) of `python words...` in the repository, words as in ("train_po.py",
    "--loss", "dpo") or ("-m", "nanopref.losses"), run here. What would end in a traceback is raised."""
    words, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    before = sys.argv, os.getcwd(), torch.get_num_threads()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*found in sys.modules", RuntimeWarning)  # of a module imported before
        os.chdir(ROOT)
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.argv, folder, threads = before
            os.chdir(folder)
            torch.set_num_threads(threads)
    return code, out.getvalue(), err.getvalue()


def start_command(*words, timeout=1200, threads=1):
    """The same of a process of its own: for exit codes and for what only a real start shows. threads=None: as many as
    the machine has."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
                          env=environment)
    return done.returncode, done.stdout, done.stderr


def is_one_line(code, err) -> bool:
    """What a mistake of the user's must end in: exit code 2 and one line that says what to do."""
    return code == 2 and len(err.strip().splitlines()) == 1 and "Traceback" not in err


class Started(Exception):
    """A run has been started."""


def starts_a_run(*words) -> bool:
    """Whether `python words...`, a finding, gets as far as its first run: it knows its options and finds its data. The
    run itself is not started."""
    def start(*command, **options):
        raise Started
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanopref.findings.seeds.subprocess", SimpleNamespace(run=start))
        try:
            run_command(*words)
        except Started:
            return True
    return False
