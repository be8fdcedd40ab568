"""The same run over several seeds: what every table of mean ± spread is made with."""
import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from nanopref.errors import UserError
from nanopref.run.cli import Parser, parse, parse_rm, positive
from nanopref.run.config import ROOT, RunConfig, pick_device
from nanopref.run.reuse import run_folder


def options(doc: str) -> argparse.ArgumentParser:
    """A command line with what such a command always takes; `doc` is its --help."""
    p = Parser(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 0 .. N-1 (default: 3)")
    p.add_argument("--rows", type=positive, metavar="N", help="use only the first N training rows: a quick look")
    p.add_argument("--out", default="runs", metavar="DIR", help="where runs are kept; what is there is not trained "
                   "again (default: runs)")
    p.add_argument("--jobs", type=positive, default=2, metavar="N", help="runs at a time, one thread each (default: 2)")
    return p


def folder_of(config: RunConfig) -> Path:
    """Where a run of this configuration lives. Every stage before it must be done."""
    config = config.on(pick_device(config.device))
    if config.model in ("base", "sft"):
        return run_folder(config, config.shipped_start or folder_of(config.before()) / "model")
    return run_folder(config, None if config.model == "scratch" else Path(config.model))


def train_all(runs, jobs: int) -> list[Path]:
    """Runs of ("train_rm.py" | "train_po.py", its arguments), `jobs` at a time in the order given; their folders. What
    is done already is reused. One thread each: two runs of one thread get more done than one of two.

    UserError with what a failed run printed."""
    runs = [(script, [str(a) for a in arguments]) for script, arguments in runs]
    configs = [(parse_rm if script == "train_rm.py" else parse)(arguments) for script, arguments in runs]

    def one(run):
        script, arguments = run
        done = subprocess.run([sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise UserError(f"{script} {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")

    first = {}  # of the runs on one SFT model: it trains that, which two at a time would do twice
    for run, config in zip(runs, configs):
        if config.model in ("base", "sft"):
            first.setdefault((config.data, config.seed), run)
    others = [run for run in runs if run not in first.values()]
    alone = any(config.data != "world" and config.model in ("base", "sft") for config in configs)  # and the base model
    with tqdm(total=len(runs), desc="runs") as progress:
        for part, at_a_time in ((list(first.values()), 1 if alone else jobs), (others, jobs)):
            with ThreadPoolExecutor(at_a_time) as pool:
                for _ in pool.map(one, part):
                    progress.update()
    return [folder_of(config) for config in configs]


def over_seeds(values, digits=2) -> str:
    """Mean ± standard deviation over the seeds; "-" where a value is None, undefined."""
    if None in values:
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"
