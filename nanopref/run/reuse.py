"""Where a run lives, and whether it is there already: a finished run is reused, another setting is another folder."""
import dataclasses
import hashlib
import inspect
import json
from pathlib import Path

from nanopref import losses, reward
from nanopref.data.examples import length_balanced
from nanopref.run.checkpoint import digest
from nanopref.run.config import RunConfig
from nanopref.world import labels

# Fields that do not change the weights, or whose effect is hashed otherwise: the data files, the start model.
NOT_DECIDING = ("device", "compile", "gradient_checkpointing", "fresh", "resume", "out", "model", "data", "test_data",
                "prompts", "strict")


def is_done(config: RunConfig, folder: Path) -> bool:
    """Whether `folder` holds this run with its report, on as many test prompts as asked for."""
    if config.fresh is not None or not (folder / "report.json").exists():
        return False
    return json.loads((folder / "config.json").read_text())["prompts"] >= config.prompts


def loss_code(config: RunConfig) -> list:
    """The functions that are the loss of this run, those of an option only where it is used."""
    if config.stage != "rm":
        return [losses.LOSSES[config.loss].fn, losses.LOSSES[config.loss].grad]
    options = {reward.ranked_pairs: config.knobs["ranking"] > 2,
               reward.length_normalised: config.knobs["length_alpha"] is not None,
               reward.length_penalised: config.knobs["length_penalty"], length_balanced: config.knobs["balance_length"]}
    return [reward.batch_loss, reward.rankings_of, reward.ranking, reward.bradley_terry, reward.by_length,
            *(function for function, is_used in options.items() if is_used)]


def run_folder(config: RunConfig, start: Path | None) -> Path:
    """Where this run lives: named by loss, seed and a fingerprint of all that decides its weights, the model folder
    `start`, the data and the loss's own code included. Another setting is another folder: nothing is overwritten.
    ValueError before the precision is known: it is part of the name.
    """
    if config.precision is None:
        raise ValueError("the precision is not known yet: take config.on(device)")
    decides = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_DECIDING}
    source = "".join(inspect.getsource(function) for function in loss_code(config))  # may be under work
    fingerprint = hashlib.sha256((json.dumps(decides, sort_keys=True) + source).encode())
    if start:
        fingerprint.update(digest(start).encode())
    if config.data == "world":
        fingerprint.update(labels.fingerprint(config.seed))
    else:
        for split, path in config.files.items():
            fingerprint.update(f"{split} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    name = "base" if config.stage == "base" else f"{config.loss}-seed{config.seed}"
    return Path(config.out) / Path(config.data).name.split(".")[0] / f"{name}-{fingerprint.hexdigest()[:6]}"
