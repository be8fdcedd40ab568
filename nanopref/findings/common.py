"""What the findings share: many test pairs of the embedded world, training over seeds, a reward model's measures."""
from pathlib import Path

import torch

from nanopref.data.examples import encode
from nanopref.data.files import read
from nanopref.findings.seeds import train_all
from nanopref.judge.measures_rm import measure, score_pairs
from nanopref.run.checkpoint import load_model
from nanopref.run.config import SHIPPED_SFT
from nanopref.run.disk import write_jsonl
from nanopref.world import labels

SPLITS = ("test_id", "test_ood")
N_TEST = 1000  # pairs per split, five times those of a run's own report: an accuracy is then known to 1.5 %
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def write_rows(path: Path, rows) -> Path:
    """Rows as JSONL, in a folder that is made where it is missing. Returns the path."""
    write_jsonl(path, rows)
    return path


def test_pairs(out: str) -> tuple[dict, dict]:
    """({split: N_TEST rows, none of them drawn for a run's own report}, {split: best possible expected accuracy})."""
    pairs = {split: labels.pairs(split, N_TEST, seed=1) for split in SPLITS}
    rows = {split: read(write_rows(Path(out) / "findings" / "data" / f"{split}.jsonl", drawn)).rows
            for split, drawn in pairs.items()}
    return rows, {split: labels.best_accuracy(drawn) for split, drawn in pairs.items()}


def sft_models(args) -> list[Path]:
    """Every seed's SFT model: the shipped one of seed 0, those of other seeds trained where missing."""
    runs = [("train_po.py", ["--loss", "sft", "--seed", seed, "--out", args.out]) for seed in range(1, args.seeds)]
    return [SHIPPED_SFT, *(run / "model" for run in train_all(runs, args.jobs))]


def train(settings: dict, args) -> dict:
    """{setting: the run folder of every seed}, trained where missing; `settings` are their flags of train_rm.py. What
    follows in this process has as many threads as there were runs at a time."""
    keys, rows = [(name, s) for name in settings for s in range(args.seeds)], ["--rows", args.rows] if args.rows else []
    runs = [("train_rm.py", ["--seed", seed, "--out", args.out, *settings[name], *rows]) for name, seed in keys]
    folders = dict(zip(keys, train_all(runs, args.jobs)))
    torch.set_num_threads(args.jobs)
    return {name: [folders[name, seed] for seed in range(args.seeds)] for name in settings}


def load(run: Path):
    """(reward model, tokenizer) of a run folder of train_rm.py."""
    return load_model(run / "model", dtype=torch.float32)


def scored(model, tokenizer, rows) -> list[dict]:
    """What nanopref/judge/measures_rm.py judges, of rows of the world."""
    pairs, _ = encode(tokenizer, rows, ("w", "l"), model.config.max_position_embeddings)
    return score_pairs(model, pairs, gold=True)


def judge(model, tokenizer, tests: dict) -> dict:
    """{split: {measure: value}} of a reward model; what is undefined, as a correlation with a constant, is left out."""
    return {split: {name: value for name, (value, _) in measure(scored(model, tokenizer, rows)).items()}
            for split, rows in tests.items()}


def values(seeds: list, split: str, name: str) -> list:
    """One measure of every seed, of what `judge` gave; None where undefined."""
    return [measures[split].get(name) for measures in seeds]


def gains(seeds: list, others: list) -> tuple[list, int]:
    """(expected accuracy on test_id minus the others', seed by seed; on how many seeds it is above 0)."""
    ours, theirs = (values(side, "test_id", "expected_accuracy") for side in (seeds, others))
    gained = [a - b for a, b in zip(ours, theirs)]
    return gained, sum(gain > 0 for gain in gained)


def standardised(rewards, origin=-1) -> torch.Tensor:
    """A reward has neither unit nor origin: rewards (..., P, N) minus their mean over the dimensions `origin`, a
    prompt's N or (-2, -1) for all, in standard deviations of these differences over P N. float64; zeros where all are
    equal."""
    centred = rewards.double() - rewards.double().mean(origin, keepdim=True)
    spread = centred.square().mean((-2, -1), keepdim=True).sqrt()
    return torch.where(spread < 1e-9, 0.0, centred / spread)  # below this a difference is a rounding error
