"""The command line of train_po.py, and what one training run is: its configuration, fully resolved."""
import argparse
import dataclasses
import hashlib
import inspect
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import world
from .checkpoint import find
from .errors import UserError
from .losses import LOSSES, check_knobs, help_text, knobs

ROOT = Path(__file__).parent.parent
SHIPPED_BASE = ROOT / "data" / "base"

# Per stage: learning rate, epochs, pairs (or texts) per optimiser step. The learning rate decides nearly everything: every
# loss gains at 3e-5, DPO still at 1e-4, while SimPO, with nothing to hold it, begins to break at 5e-5 (see the README).
STAGES = {"base": dict(lr=2e-3, epochs=2, batch_size=64),
          "sft": dict(lr=3e-4, epochs=3, batch_size=32),
          "po": dict(lr=3e-5, epochs=1, batch_size=32)}
FILE_BASE = dict(lr=1e-3, epochs=6, batch_size=32)  # the base stage on a file's own text, which is little: several passes
# The transformer that is trained from scratch: 1.8 M parameters with a vocabulary of 1,024.
ARCHITECTURE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True)
VOCABULARY = {True: 1024, False: 2048}  # tokens of a tokenizer trained here: on the embedded world, on other texts

EPILOG = """
The run stands on earlier stages: random weights -> base model (plain text) -> SFT (--loss sft) -> preference training.
A stage that is already done is found in --out and reused; a base model of the embedded world ships in data/base.

Losses and their knobs (a knob belongs to its loss; the defaults live in nanopref/losses.py alone):

"""


@dataclass
class RunConfig:
    """Everything that decides the weights that come out. `device`, `fresh`, `resume` and `out` do not."""
    loss: str
    knobs: dict = field(default_factory=dict)
    data: str = "world"
    model: str | None = None
    lr: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    max_length: int = 512
    rows: int | None = None
    prompts: int = 200
    seed: int = 0
    strict: bool = False
    device: str = "auto"
    fresh: str | None = None
    resume: bool = False
    out: str = "runs"

    def __post_init__(self):
        self.knobs = check_knobs(self.loss, self.knobs)
        if self.model == "scratch" and self.loss != "sft":
            raise UserError("--model scratch trains the base model, on plain text: it goes with --loss sft")
        self.model = self.model or ("base" if self.loss == "sft" else "sft")
        defaults = FILE_BASE if self.stage == "base" and self.data != "world" else STAGES[self.stage]
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.data != "world" and not Path(self.data).is_file():
            what = "is a folder" if Path(self.data).is_dir() else "no such file"
            raise UserError(f"--data {self.data}: {what}; give a JSONL file, or leave it out for the embedded world")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        if not 0 < self.lr < 1:
            raise UserError(f"--lr must lie between 0 and 1, got {self.lr}")
        for name in ("epochs", "batch_size", "accumulate", "prompts", "rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch-size {self.batch_size} must be a multiple of --accumulate {self.accumulate}")
        if self.max_length < 32:
            raise UserError(f"--max-length must be at least 32 tokens, got {self.max_length}")

    @property
    def stage(self) -> str:
        """base, sft or po."""
        return "base" if self.model == "scratch" else "sft" if self.loss == "sft" else "po"

    def before(self) -> "RunConfig":
        """The run whose model this one starts from, with that stage's own defaults."""
        return RunConfig(loss="sft", model="base" if self.model == "sft" else "scratch", data=self.data,
                         max_length=self.max_length, seed=self.seed if self.model == "sft" else 0, strict=self.strict,
                         device=self.device, out=self.out, resume=self.resume,
                         fresh=self.fresh if self.fresh in ("base", "sft") and self.model in (self.fresh, "sft") else None)

    def folder(self, start: Path | None) -> Path:
        """Where this run lives: named by loss, seed and a fingerprint of all that decides its weights, the model folder
        `start`, the data and the loss's own code included. Another setting is another folder, so nothing is overwritten."""
        decides = {k: v for k, v in dataclasses.asdict(self).items()
                   if k not in ("device", "fresh", "resume", "out", "model")}
        source = "".join(inspect.getsource(f) for f in (LOSSES[self.loss].fn, LOSSES[self.loss].grad))  # may be under work
        digest = hashlib.sha256((json.dumps(decides, sort_keys=True) + source).encode())
        if start:
            digest.update(find(start, "model.safetensors").read_bytes())
        digest.update(world.fingerprint(self.seed) if self.data == "world" else Path(self.data).read_bytes())
        name = "base" if self.stage == "base" else f"{self.loss}-seed{self.seed}"
        return Path(self.out) / Path(self.data).name.split(".")[0] / f"{name}-{digest.hexdigest()[:6]}"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parse(argv=None) -> RunConfig:
    """The command line as a RunConfig. Mistakes end in one line and exit code 2."""
    p = Parser(prog="train_po.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train a policy on preferences, judge it against its start, and show what happened.",
               epilog=EPILOG + "".join(help_text(name) for name in LOSSES))
    p.add_argument("--loss", required=True, choices=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    p.add_argument("--data", default="world", metavar="FILE",
                   help="preference data, JSONL or JSONL.gz, format detected from its fields (default: the embedded world)")
    p.add_argument("--model", metavar="sft|base|scratch|DIR", help="what to start from: the SFT model (default), the base "
                   "model (default of --loss sft), random weights (trains the base model), or a model folder")
    for name, type_, text in (("lr", float, "peak learning rate"), ("epochs", int, "passes over the training data"),
                              ("batch-size", int, "pairs per optimiser step")):
        default = ", ".join(f"{stage} {values[name.replace('-', '_')]}" for stage, values in STAGES.items())
        p.add_argument(f"--{name}", type=type_, metavar="N", help=f"{text} (default: {default})")
    p.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches per step: less memory, same result (but "
                   "for kto, which estimates its KL per micro-batch)")
    p.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens of prompt + response; longer prompts "
                   "are cut on the left, longer responses on the right; answers at the end may fill the model's context "
                   "(default: 512)")
    p.add_argument("--rows", type=int, metavar="N", help="use only the first N training rows")
    p.add_argument("--prompts", type=int, default=200, metavar="N", help="test prompts to answer per split (default: 200)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of data, order and sampling (default: 0)")
    p.add_argument("--strict", action="store_true", help="a row that would be dropped is an error instead")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda, else mps, else cpu)")
    p.add_argument("--out", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    p.add_argument("--resume", action="store_true", help="continue this very run from its last checkpoint after a kill")
    p.add_argument("--fresh", nargs="?", const="base", choices=("base", "sft", "run"), metavar="base|sft|run",
                   help="redo from this stage on, although it is done (--fresh alone: from base)")
    defaults = {}
    for loss in LOSSES:
        for knob, value in knobs(loss).items():
            defaults.setdefault(knob, value)
    for knob, value in defaults.items():
        p.add_argument(f"--{knob.replace('_', '-')}", dest=f"knob_{knob}", metavar="X", help=argparse.SUPPRESS,
                       type=_boolean if isinstance(value, bool) else float)
    given = vars(p.parse_args(argv))
    knobs_given = {k[len("knob_"):]: v for k, v in given.items() if k.startswith("knob_") and v is not None}
    return RunConfig(knobs=knobs_given, **{k: v for k, v in given.items() if not k.startswith("knob_")})


def _boolean(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def pick_device(name: str) -> torch.device:
    """"auto" is CUDA, else Apple's mps, else the CPU. UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def exit_on_user_error(main):
    """Run `main`; a UserError becomes one line and exit code 2, Ctrl-C a hint at --resume."""
    try:
        main()
    except UserError as error:
        sys.exit(_complain(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; run the same command with --resume to go on from the last checkpoint", 130))


def _complain(line, code):
    print(line, file=sys.stderr)
    return code
