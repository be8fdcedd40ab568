"""Where a run lives, and whether it is there already. What decides its result names its folder: the settings, the start
model, the data, and the code (see source.py). Another of any is another run; what is finished is reused."""
import dataclasses
import hashlib
import json
from pathlib import Path

from nanopref.errors import UserError
from nanopref.losses import LOSSES
from nanopref.run.checkpoint import digest, has_model
from nanopref.run.config import ROOT, RunConfig
from nanopref.run.source import changed, code_of
from nanopref.world.language import TABLES

# Fields that do not change the weights, or whose effect is hashed otherwise: the data files, the start model.
NOT_DECIDING = ("device", "compile", "gradient_checkpointing", "fresh", "resume", "out", "model", "data", "test_data",
                "prompts")
# Code that does not change the weights, or whose effect is hashed otherwise: the resolved configuration, the loss. What
# of it makes the report is hashed for that.
NOT_TRAINING = ("train_po.start_from", "nanopref.judge", "nanopref.errors", "nanopref.losses.LOSSES",
                "nanopref.run.cli", "nanopref.run.checks", "nanopref.run.config.RunConfig",
                "nanopref.run.config.DataConfig", "nanopref.run.config.pick_device", "nanopref.run.memory",
                "nanopref.run.reuse", "nanopref.run.source", "nanopref.run.disk",
                "nanopref.run.training.announce")
NOT_IN_REPORT = ("nanopref.errors", "nanopref.run.cli", "nanopref.run.config.RunConfig", "nanopref.losses.LOSSES")


@dataclasses.dataclass
class Identity:
    """What makes a run this one, and where it lives. Runs with the same settings may differ in start and code."""
    folder: Path
    settings: str  # hash of the configuration and the data
    code: dict     # {file: hash} of the code that trains it

    def described(self, config: RunConfig, start) -> dict:
        """What is kept in the run's config.json."""
        described = {**dataclasses.asdict(config), "start": start and str(start)}
        return {**described, "settings": self.settings, "code": self.code}


def identity(config: RunConfig, start: Path | None) -> Identity:
    """Of the run that `config` describes, from the model folder `start`. ValueError before the precision is known: it
    decides, too."""
    if config.precision is None:
        raise ValueError("the precision is not known yet: take config.on(device)")
    decides = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_DECIDING}
    if loss := LOSSES.get(config.loss):
        decides |= {"reference": loss.reference, "pairs": loss.pairs, "inputs": loss.inputs}
    data = {} if config.data == "world" else {split: hashlib.sha256(path.read_bytes()).hexdigest()
                                              for split, path in config.files.items()}
    settings, code = hash_of([decides, data]), training_code(config)
    name = "base" if config.stage == "base" else f"{config.loss}-seed{config.seed}"
    fingerprint = hash_of([settings, code, start and digest(start)])[:6]
    return Identity(Path(config.out) / Path(config.data).name.split(".")[0] / f"{name}-{fingerprint}", settings, code)


def hash_of(value) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def run_folder(config: RunConfig, start: Path | None) -> Path:
    """Where the run that `config` describes lives, from the model folder `start`."""
    return identity(config, start).folder


def training_code(config: RunConfig) -> dict:
    """{file: hash} of the code that decides this run's weights: of its stage, its data, its loss and its options."""
    from_scratch = ["run.checkpoint.new_model", "run.dataset.plain_texts", "data.examples.text_examples",
                    "run.config.ARCHITECTURE", "run.config.VOCABULARY"]
    unused = {"base": ["run.reference", "run.checkpoint.load_model", "run.metrics", "data.examples.encode"],
              "sft": ["run.reference", *from_scratch], "po": from_scratch, "rm": []}[config.stage]
    if config.data != "world":
        unused += ["world"]
    else:
        unused += ["run.dataset.of_file", "data.hub"]
        unused += ["run.dataset.load"] if config.stage == "base" else []
        unused += ["world.labels.pairs", "world.labels.best_accuracy"] if config.stage == "sft" else []
    unused += [] if config.knobs.get("ranking", 2) > 2 else ["world.labels.rankings"]
    unused += [] if config.knobs.get("balance_length") else ["data.examples.length_balanced"]
    loss = LOSSES.get(config.loss)
    roots = ["train_po.train", loss.fn, loss.grad] if loss else ["train_rm.train"]
    code = code_of(*roots, stop=(*NOT_TRAINING, *(f"nanopref.{name}" for name in unused)))
    return {**code, "data/world.json": hash_of(TABLES)[:8]} if config.data == "world" else code


def report_code(config: RunConfig) -> dict:
    """{file: hash} of the code that makes a finished run's report."""
    roots = ["report_rm.report_rm", "measures_rm.score_pairs"] if config.stage == "rm" else ["report.report"]
    return code_of(*(f"nanopref.judge.{name}" for name in roots), "nanopref.run.dataset.load", stop=NOT_IN_REPORT)


def read_json(path: Path) -> dict:
    """The object in a file that a run has written; {} where it is absent or was damaged from outside."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_done(config: RunConfig, this: Identity) -> bool:
    """Whether `this` run is finished: its model is there and its report, made by the code as it is now and on as many
    test prompts as asked for. Where something is there that other code has made, a line says what has changed.

    UserError for --resume where the run that was interrupted is one of other code."""
    if config.fresh is None and (report := read_json(this.folder / "report.json")) and has_model(this.folder / "model"):
        if not (files := changed(report_code(config), report.get("code", {}))):
            enough = read_json(this.folder / "config.json").get("prompts", 0) >= config.prompts
            if enough:
                print(f"{config.stage}: done already, reusing {this.folder}")
            return enough
        print(f"{config.stage}: {this.folder} is trained; its report is made again, since another version of "
              f"{in_words(files)} made it")
    elif not (this.folder / "config.json").exists():
        latest_first = sorted(others(this).items(), key=lambda other: -other[0].stat().st_mtime)
        for folder, made in latest_first[:1]:
            files = changed(this.code, made.get("code", {}))
            why = f"another version of {in_words(files)}" if files else "another start model"
            if config.resume and has_model(folder / "checkpoint"):
                raise UserError(f"--resume: {folder} was interrupted, but {why} made it: undo that change to go on "
                                "from its checkpoint, or leave out --resume to start again")
            print(f"{config.stage}: {folder} has these settings, but {why} made it: training again, in {this.folder}")
    return False


def others(this: Identity) -> dict:
    """{folder: its config.json} of the runs beside this one that have its settings, but not its code or start."""
    made = {folder: read_json(folder / "config.json") for folder in this.folder.parent.glob("*/")}
    return {folder: each for folder, each in made.items()
            if folder != this.folder and each.get("settings") == this.settings}


def in_words(files: list[str]) -> str:
    """Up to three of them, and how many more there are."""
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def about_shipped(config: RunConfig) -> str:
    """Which model that ships with the project this run starts from, and what has changed since that was made: code.txt
    in its folder has the hashes of then."""
    then = dict(reversed(line.split()) for line in (config.shipped_start / "code.txt").read_text().splitlines())
    line = f"{config.model} model: the one shipped in {config.shipped_start.relative_to(ROOT)}"
    if files := changed(training_code(config.before()), then):
        line += f"; another version of {in_words(files)} made it, --fresh {config.model} trains it with yours"
    return line

