"""How do the costs of a DPO step and of a whole run grow? A table, a line of words for each question, one figure.

    python -m nanopref.bench.growth                    # about ten minutes on one CPU core; runs/bench/growth.png
    python -m nanopref.bench.growth --rows 500 1000    # whole runs with fewer pairs only
    python -m nanopref.bench.growth --quick            # the two smallest points of everything, in a minute or two

Size S, 8 pairs a step, prompts of 70 tokens and responses of 50; one of these is varied at a time. Seconds are those of
the step of train_po.py, median over rounds that run all points of a question one after the other; memory is that of one
forward and backward above weights and gradients. Beside them stands what was executed in matrix products: where tokens
grow n times and the products more, it is attention, whose scores are as many as the square of a row's length; where
seconds grow less than the products, small steps leave the machine waiting. Minutes are those of whole runs of
train_po.py from the shipped base model, with the world being made, the reference's pass and the report.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import train_po
from nanopref.bench.memory import above_gradients, is_measured, pairs
from nanopref.bench.setting import flops, interleaved, model_of, spread
from nanopref.errors import UserError
from nanopref.judge.tables import aligned
from nanopref.logps import sequence_logps
from nanopref.run.cli import Parser, exit_on_user_error, positive
from nanopref.run.config import ROOT, SHIPPED_BASE, RunConfig, pick_device
from nanopref.run.training import Forward, matrix_precision, new_optimizer

USUAL, TOTAL = dict(n=8, prompt=70, response=50), 240  # tokens; TOTAL: of a pair whose prompt's share is varied
SHAPES = ((2, 128), (4, 256), (6, 384), (8, 512))      # layers, width


def questions() -> dict:
    """{what is varied: [(changes of the architecture, lengths), ...]}, from small to large."""
    return {
        "response length, tokens": [({}, {**USUAL, "response": k}) for k in (25, 50, 100, 200, 400)],
        "prompt's share of a pair": [({}, dict(n=8, prompt=p, response=(TOTAL - p) // 2))
                                     for p in (24, 72, 120, 168, 216)],
        "pairs a step": [({}, {**USUAL, "n": n}) for n in (2, 4, 8, 16, 32)],
        "vocabulary, thousands": [(dict(vocab_size=1024 * k), USUAL) for k in (1, 4, 12, 24, 48)],
        "parameters, millions": [(dict(num_hidden_layers=layers, hidden_size=width, intermediate_size=11 * width // 4,
                                       num_attention_heads=width // 64), USUAL) for layers, width in SHAPES]}


def main(argv=None) -> None:
    """Measures everything, prints table and words, draws the figure."""
    p = Parser(prog="nanopref.bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=positive, default=3, metavar="N", help="counted rounds of steps (default: 3)")
    p.add_argument("--rows", type=positive, nargs="+", default=(500, 1000, 2000, 4000), metavar="N",
                   help="pairs of the whole runs (default: 500 1000 2000 4000)")
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads (default: 1)")
    p.add_argument("--device", default="auto", help="of the steps: cpu, cuda (default: cuda if there is one)")
    p.add_argument("--quick", action="store_true", help="the two smallest points of everything, one round")
    p.add_argument("--out", default="runs", metavar="DIR", help="the figure goes to DIR/bench (default: runs)")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    n, rounds = (2, 1) if args.quick else (None, args.rounds)
    measured = {}
    for name, points in questions().items():
        measured[name] = steps(name, points[:n], rounds, pick_device(args.device))
        print(table(name, measured[name]), flush=True)
    name, measured[name] = "pairs of a whole run", whole_runs(sorted(args.rows)[:n], args.threads)
    print(table(name, measured[name]), "\n")
    for name, rows in measured.items():
        print(in_words(name, rows))
    figure(measured, Path(args.out) / "bench" / "growth.png")


def steps(name: str, points: list, rounds: int, device) -> list[dict]:
    """A row for every point: x, tokens, GFLOP of a step, its seconds in every round, and MB if they can be measured."""
    config = RunConfig(loss="dpo").on(device)
    autocast = matrix_precision(config, device)
    runs, rows = {}, []
    for i, (changes, lengths) in enumerate(points):
        model = model_of("S", device, **changes).train()
        examples, forward = pairs(**lengths, vocab_size=model.config.vocab_size), Forward(sequence_logps, model)
        memory = above_gradients(model, examples) / 1e6 if is_measured(device) else None
        model.zero_grad()
        optimizer = new_optimizer(model, 1e-5)
        runs[i] = lambda forward=forward, optimizer=optimizer, examples=examples: train_po.step(
            config, forward, optimizer, examples, autocast)
        used = sum(p.numel() for p in model.parameters()) - model.model["embed_tokens"].weight.numel()  # that looks up
        x = {"response length, tokens": lengths["response"], "prompt's share of a pair": lengths["prompt"] / TOTAL,
             "pairs a step": lengths["n"], "vocabulary, thousands": model.config.vocab_size / 1000,
             "parameters, millions": used / 1e6}[name]
        rows.append({"x": x, "tokens": sum(e.n_tokens for e in examples), "GFLOP": flops(runs[i]) / 1e9, "MB": memory})
    seconds = interleaved(runs, rounds)
    return [{**row, "seconds": seconds[i]} for i, row in enumerate(rows)]


def whole_runs(rows: list[int], threads: int) -> list[dict]:
    """{"x": pairs, "minutes": [of the run]} of train_po.py on that many pairs."""
    runs = []
    for n in rows:
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "train_po.py", "--loss", "dpo", "--model", str(SHIPPED_BASE),
                                   "--rows", str(n), "--prompts", "20", "--out", out], cwd=ROOT, capture_output=True,
                                  text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
            if done.returncode:
                raise UserError(f"train_po.py --rows {n} failed: {done.stderr[-500:]}")
            runs.append({"x": n, "minutes": [(time.perf_counter() - began) / 60]})
    return runs


def cost_of(rows: list[dict]) -> tuple[str, list[float]]:
    """("seconds" or "minutes", the median at every point)."""
    unit = "seconds" if "seconds" in rows[0] else "minutes"
    return unit, [statistics.median(row[unit]) for row in rows]


def table(name: str, rows: list[dict]) -> str:
    """A line for every point of one question, below an empty one."""
    if "minutes" in rows[0]:
        cells = [[name, "minutes"], *([f"{row['x']:,}", f"{row['minutes'][0]:.2f}"] for row in rows)]
    else:
        cells = [[name, "seconds", "MB", "tokens", "GFLOP", "GFLOP/s"]]
        cells += [[f"{row['x']:,.4g}", spread(row["seconds"], 3), "-" if row["MB"] is None else round(row["MB"]),
                   f"{row['tokens']:,}", f"{row['GFLOP']:.1f}",
                   f"{row['GFLOP'] / statistics.median(row['seconds']):.1f}"] for row in rows]
    return "\n" + aligned(cells, ">26", ">26", ">8", ">8", ">8", ">9")


def line(x, y) -> tuple[float, float, float]:
    """(a, b, how far the points are from a + b x at most, as a share of the largest): least squares."""
    slope, start = np.polyfit(x, y, 1)
    return start, slope, max(abs(start + slope * a - b) for a, b in zip(x, y)) / max(y)


def grown(rows: list[dict]) -> dict:
    """{what: how many times as much at the last point as at the first}: the cost, and what it is made of."""
    unit, costs = cost_of(rows)
    return {unit: costs[-1] / costs[0],
            **{key: rows[-1][key] / rows[0][key] for key in ("tokens", "GFLOP", "MB") if rows[0].get(key)}}


def in_words(name: str, rows: list[dict]) -> str:
    """How much the cost grows from the first point to the last, beside what it is made of; and how straight that is."""
    unit, costs = cost_of(rows)
    start, _, off = line([row["x"] for row in rows], costs)
    return (f"{name}, {rows[0]['x']:,.3g} to {rows[-1]['x']:,.4g} ({rows[-1]['x'] / rows[0]['x']:.1f} x): "
            + ", ".join(f"{what} {times:.1f} x" for what, times in grown(rows).items())
            + f"; {unit} off the line by at most {off:.0%} of the largest, {start:.2f} of them at 0")


def figure(measured: dict, path: Path) -> None:
    """A panel for every question: the cost in blue with its line, the memory in orange with its own."""
    from nanopref.judge.plots import plt, save
    fig, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for ax, (name, rows) in zip(axes.flat, measured.items()):
        x, (unit, costs) = [row["x"] for row in rows], cost_of(rows)
        drawn = [(ax, unit + (" a step" if unit == "seconds" else ""), costs, "tab:blue", "o")]
        if rows[0].get("MB"):
            drawn.append((ax.twinx(), "MB above weights and gradients", [row["MB"] for row in rows], "tab:orange", "s"))
        for each, label, y, colour, marker in drawn:
            start, slope, _ = line(x, y)
            each.plot(x, y, marker, color=colour, ms=5)
            each.plot([0, x[-1]], [start, start + slope * x[-1]], color=colour, lw=1, alpha=0.6)
            each.set_ylabel(label, color=colour)
            each.set_ylim(0, (1.1 if each is ax else 1.6) * max(y))  # not on top of each other
        ax.set_title(", ".join(f"{what} {times:.1f} x" for what, times in grown(rows).items()), fontsize=10)
        ax.set_xlabel(name)
        ax.set_xlim(left=0)
    fig.suptitle("What a DPO step and a whole run cost. Titles: how many times as much at the last point as at the "
                 "first. Lines: least squares", fontsize=11)
    save(fig, path)


if __name__ == "__main__":
    exit_on_user_error(main)
