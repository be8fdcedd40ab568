"""What the findings share: test pairs of the embedded world in plenty, and a reward model's measures on them."""
from pathlib import Path

import torch

from .. import world
from ..checkpoint import load_model
from ..data import read
from ..evaluate_rm import measure
from ..examples import encode
from ..reward import score_pairs
from ..seeds import folder_of

N_TEST = 1000  # pairs per split, five times those of a run's own report: an accuracy is then known to 1.5 %
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def write_rows(path: Path, rows) -> Path:
    """Rows as JSONL, once: a file that is there has been made by the same command. Returns the path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        world.write_rows(path, rows)
    return path


def test_rows(out: str, split: str) -> list:
    """N_TEST pairs of "test_id" or "test_ood", none of them drawn for a run's own report."""
    path = Path(out) / "findings" / "data" / f"{split}.jsonl"
    return read(write_rows(path, world.pairs(split, N_TEST, seed=1))).rows


def best_possible(rows) -> float:
    """The expected accuracy of the gold reward itself on rows with its scores: no judge has more."""
    return sum(world.preference_probability(*sorted(row.scores, reverse=True)) for row in rows) / len(rows)


def sft_of(config) -> Path:
    """The model folder of the SFT run under a run of train_rm.py."""
    return folder_of(config.before()) / "model"


def judge(folder, rows, untrained_seed=None) -> dict:
    """{measure: value} of the reward model in `folder` on rows of the world; with a seed, of an untrained head on the
    language model there."""
    if untrained_seed is not None:
        torch.manual_seed(untrained_seed)
    model, tokenizer = load_model(folder, dtype=torch.float32, reward=True)
    pairs, _ = encode(tokenizer, rows, ("w", "l"), model.config.max_position_embeddings)
    return {name: value for name, (value, _) in measure(score_pairs(model, pairs, gold=True)).items()}


def save_figure(fig, out: str, name: str) -> None:
    """Writes {out}/findings/{name}.png and says so."""
    path = Path(out) / "findings" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)
    print(f"\nfigure: {path}")
