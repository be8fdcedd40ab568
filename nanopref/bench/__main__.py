"""How fast is a DPO step, the sampler and the start, beside the plain way and beside TRL and transformers?

    python -m nanopref.bench                        # our own ladder on size S: some minutes on one CPU core
    python -m nanopref.bench --peers                # and TRL and transformers (pip install trl)
    python -m nanopref.bench --size M --peers --rounds 3
    python -m nanopref.bench --parts memory start   # only these
    python -m nanopref.bench.growth                 # the figure: how cost grows

The contenders of a part run round by round (A, B, A, B ...), one thread, on the same weights, pairs and batch: float32
on a CPU, bf16 autocast on CUDA. A figure is the median over rounds, in brackets the least and the most; ratios are
medians of the ratios within a round. "Tuned" is the C library's allocator told to keep freed memory (Linux:
MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=2^40): it helps whoever allocates much.

    steps     a DPO step: the plain way, five improvements of it one on another, TRL as it comes and at its best
    memory    what a step takes above weights and gradients at a vocabulary of 49,152
    sampling  tokens a second, beside transformers' generate
    start     from the start of the process to the first finished step
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from nanopref.errors import UserError
from nanopref.judge.tables import aligned
from nanopref.run.cli import Parser, exit_on_user_error, positive
from nanopref.run.config import ROOT, pick_device
from nanopref.run.disk import write_json

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2 ** 40)}
PARTS = ("steps", "memory", "sampling", "start")


def main(argv=None) -> None:
    """Each part in a process of its own, with each allocator; prints the tables and keeps all figures as JSON."""
    from nanopref.bench.setting import SIZES
    p = Parser(prog="nanopref.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, default="S", help="model and lengths (default: S)")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="(default: all four)")
    p.add_argument("--peers", action="store_true", help="TRL and transformers as well")
    p.add_argument("--rounds", type=positive, default=5, metavar="N", help="counted rounds (default: 5)")
    p.add_argument("--pairs", type=positive, default=48, metavar="N", help="pairs a round, 8 a step (default: 48)")
    p.add_argument("--allocators", nargs="+", choices=("default", "tuned"), default=("default",), metavar="NAME",
                   help="default, tuned: of the C library (default: default)")
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads (default: 1)")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                   help="of steps and sampling; memory and start take CUDA where it is (default: so do these)")
    p.add_argument("--out", default="runs", metavar="DIR", help="figures go to DIR/bench (default: runs)")
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one part, in this process
    args = p.parse_args(argv)
    if args.here:
        torch.set_num_threads(args.threads)
        return print(json.dumps(part(args.parts[0], args)))
    print(f"{platform.machine()}, {args.threads} thread(s), {pick_device(args.device)}; torch {torch.__version__}, "
          f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}" + (peers_versions() if args.peers else ""))
    path = Path(args.out) / "bench" / f"{args.size}.json"
    figures = json.loads(path.read_text()) if path.exists() else {}  # other parts, measured before
    for name in args.parts:
        for allocator in args.allocators if name in ("steps", "sampling") else ("default",):
            title = f"{name}, size {args.size}, {allocator} allocator" if name in ("steps", "sampling") else name
            print(f"\n{title} ...", flush=True)
            given = ["--size", args.size, "--parts", name, "--rounds", args.rounds, "--pairs", args.pairs, "--threads",
                     args.threads, "--device", args.device, "--here", *["--peers"] * args.peers]
            environment = {"OMP_NUM_THREADS": str(args.threads), **(TUNED if allocator == "tuned" else {})}
            done = subprocess.run([sys.executable, "-m", "nanopref.bench", *map(str, given)], stdout=subprocess.PIPE,
                                  text=True, cwd=ROOT, env={**os.environ, **environment})
            if done.returncode:
                sys.exit(done.returncode)
            figures[title] = json.loads(done.stdout.splitlines()[-1])
            print(table(figures[title]))
            write_json(path, figures)
    print(f"\nall figures: {path}")


def peers_versions() -> str:
    """The versions of TRL and transformers. UserError if one is not there."""
    try:
        return "".join(f", {name} {metadata.version(name)}" for name in ("trl", "transformers"))
    except metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install trl, or leave out --peers") from None


def part(name: str, args) -> list[dict]:
    """The rows of one part's table."""
    if name == "steps":
        from nanopref.bench.steps import measure
        return measure(args.size, args.pairs, args.rounds, args.peers, pick_device(args.device))
    if name == "memory":
        from nanopref.bench.memory import measure
        return measure(args.peers)
    if name == "sampling":
        from nanopref.bench.sampling import measure
        return measure(args.size, args.rounds, args.peers, pick_device(args.device))
    from nanopref.bench.start import measure
    return measure(args.rounds, args.peers)


def table(rows: list[dict]) -> str:
    """Rows of equal keys, right-aligned under them."""
    return aligned([list(rows[0]), *(row.values() for row in rows)])


if __name__ == "__main__":
    exit_on_user_error(main)
