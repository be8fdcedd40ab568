"""The command line of train_po.py and train_rm.py, and what one training run is: its configuration, fully resolved."""
import argparse
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import distributed, reward, world
from .checkpoint import digest
from .errors import UserError
from .examples import length_balanced
from .hub import data_files
from .losses import LOSSES, check_knobs, help_text, knobs

ROOT = Path(__file__).parent.parent
SHIPPED_BASE = ROOT / "data" / "base"

# Per stage: learning rate, epochs, pairs (or texts) per optimiser step. The learning rate decides nearly everything:
# every loss gains at 3e-5, DPO still at 1e-4, while SimPO, with nothing to hold it, begins to break at 5e-5 (see the
# README).
STAGES = {"base": dict(lr=2e-3, epochs=2, batch_size=64),
          "sft": dict(lr=3e-4, epochs=3, batch_size=32),
          "po": dict(lr=3e-5, epochs=1, batch_size=32),
          "rm": dict(lr=3e-4, epochs=1, batch_size=32)}
# The same for a pretrained model (--model DIR): hundreds of times larger, so a step must be smaller. Batch and epochs
# are document 000's.
PRETRAINED = {"sft": dict(lr=1e-5, epochs=1, batch_size=16),
              "po": dict(lr=1e-5, epochs=1, batch_size=16),
              "rm": dict(lr=3e-5, epochs=1, batch_size=16)}
# The base stage on a file's own text, which is little: several passes.
FILE_BASE = dict(lr=1e-3, epochs=6, batch_size=32)
# The transformer that is trained from scratch: 1.8 M parameters with a vocabulary of 1,024.
ARCHITECTURE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True)
VOCABULARY = {True: 1024, False: 2048}  # tokens of a tokenizer trained here: on the embedded world, on other texts

EPILOG = """
The run stands on earlier stages: random weights -> base model (plain text) -> SFT (--loss sft) -> preference training.
A stage that is already done is found in --out and reused; a base model of the embedded world ships in data/base.

Losses and their knobs (a knob belongs to its loss; the defaults live in nanopref/losses.py alone):

"""

RM_EPILOG = """
Every rule about length is kept in the model folder and applied whenever this project scores with it. The options are
explained with their formulas and gradients in nanopref/reward.py; what each does to accuracy and to length bias (b: how
far the reward follows length beyond what the gold reward pays for, on the embedded world; 0: not at all) is measured by
python -m nanopref.findings.options
"""

NOT_DECIDING = ("device", "compile", "gradient_checkpointing", "fresh", "resume", "out", "model", "data", "test_data",
                "prompts", "strict")


@dataclass
class RunConfig:
    """Everything that decides the weights that come out, and a few things that do not (NOT_DECIDING)."""
    loss: str                    # a key of LOSSES, or "rm": the Bradley-Terry reward model of train_rm.py
    knobs: dict = field(default_factory=dict)
    data: str = "world"
    test_data: str | None = None
    axis: str | None = None
    system: str | None = None
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
    precision: str | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    fresh: str | None = None
    resume: bool = False
    out: str = "runs"

    def __post_init__(self):
        self.knobs = reward.check_options(self.knobs) if self.loss == "rm" else check_knobs(self.loss, self.knobs)
        if self.knobs.get("ranking", 2) > 2 and self.data != "world":
            raise UserError("--ranking goes with the embedded world; a file of rankings is recognised by its field "
                            "`ranked`")
        if self.model == "scratch" and self.loss != "sft":
            raise UserError("--model scratch trains the base model, on plain text: it goes with --loss sft")
        self.model = self.model or ("base" if self.loss == "sft" else "sft")
        is_pretrained = self.model not in ("scratch", "base", "sft")
        defaults = PRETRAINED[self.stage] if is_pretrained else STAGES[self.stage]
        if self.stage == "base" and self.data != "world":
            defaults = FILE_BASE
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.data == "world" and (self.test_data or self.axis or self.system is not None):
            raise UserError("--test-data, --axis and --system go with --data FILE: the embedded world has its own")
        if self.precision is None:  # bf16 needs hardware for it to be faster: every CUDA GPU of interest has it
            self.precision = "bf16" if pick_device(self.device).type == "cuda" else "fp32"
        if self.precision not in ("bf16", "tf32", "fp32"):
            raise UserError(f"--precision must be bf16, tf32 or fp32, not {self.precision}")
        if self.precision == "tf32" and pick_device(self.device).type != "cuda":
            raise UserError("--precision tf32 is a format of NVIDIA GPUs: take fp32 or bf16 here")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        if not 0 < self.lr < 1:
            raise UserError(f"--lr must lie between 0 and 1, got {self.lr}")
        for name in ("epochs", "batch_size", "accumulate", "prompts", "rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        n = distributed.size()
        if self.batch_size % (self.accumulate * n):
            processes = f" times the {n} processes; or train this stage first without torchrun" if n > 1 else ""
            raise UserError(f"{self.stage}: --batch-size {self.batch_size} must be a multiple of --accumulate "
                            f"{self.accumulate}{processes}")
        if self.max_length < 32:
            raise UserError(f"--max-length must be at least 32 tokens, got {self.max_length}")

    @property
    def stage(self) -> str:
        """base, sft, po or rm."""
        return "base" if self.model == "scratch" else self.loss if self.loss in ("sft", "rm") else "po"

    @functools.cached_property
    def files(self) -> dict:
        """{"train": Path, maybe "test": Path} of --data and --test-data, downloaded if they name a hub repository."""
        files = data_files(self.data)
        given = data_files(self.test_data) if self.test_data else {}
        return {**files, "test": given.get("test", given["train"])} if given else files

    def before(self) -> "RunConfig":
        """The run whose model this one starts from, with that stage's own defaults."""
        again = self.fresh if self.fresh in ("base", "sft") and self.model in (self.fresh, "sft") else None
        same = {name: getattr(self, name) for name in (
            "data", "test_data", "axis", "system", "max_length", "strict", "device", "precision", "compile",
            "gradient_checkpointing", "out", "resume")}
        return RunConfig(loss="sft", model="base" if self.model == "sft" else "scratch",
                         seed=self.seed if self.model == "sft" else 0, fresh=again, **same)

    def is_done(self, folder: Path) -> bool:
        """Whether `folder` holds this run with its report, on as many test prompts as asked for."""
        if self.fresh is not None or not (folder / "report.json").exists():
            return False
        return json.loads((folder / "config.json").read_text())["prompts"] >= self.prompts

    def _code(self) -> list:
        """The functions that are the loss of this run, those of an option only where it is used."""
        if self.stage != "rm":
            return [LOSSES[self.loss].fn, LOSSES[self.loss].grad]
        options = {reward.ranked_pairs: self.knobs["ranking"] > 2,
                   reward.length_normalised: self.knobs["length_alpha"] is not None,
                   reward.length_penalised: self.knobs["length_penalty"], length_balanced: self.knobs["balance_length"]}
        return [reward.batch_loss, reward.ranking, reward.bradley_terry, reward.by_length,
                *(function for function, is_used in options.items() if is_used)]

    def folder(self, start: Path | None) -> Path:
        """Where this run lives: named by loss, seed and a fingerprint of all that decides its weights, the model folder
        `start`, the data and the loss's own code included. Another setting is another folder: nothing is overwritten.
        """
        decides = {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_DECIDING}
        source = "".join(inspect.getsource(function) for function in self._code())  # may be under work
        found = hashlib.sha256((json.dumps(decides, sort_keys=True) + source).encode())
        if start:
            found.update(digest(start).encode())
        if self.data == "world":
            found.update(world.fingerprint(self.seed))
        else:
            for split, path in self.files.items():
                found.update(f"{split} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        name = "base" if self.stage == "base" else f"{self.loss}-seed{self.seed}"
        return Path(self.out) / Path(self.data).name.split(".")[0] / f"{name}-{found.hexdigest()[:6]}"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one line."""

    def error(self, message):
        distributed.let_main_speak()
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parse(argv=None) -> RunConfig:
    """The command line of train_po.py as a RunConfig. Mistakes end in one line and exit code 2."""
    p = Parser(prog="train_po.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train a policy on preferences, judge it against its start, and show what happened.",
               epilog=EPILOG + "".join(help_text(name) for name in LOSSES))
    p.add_argument("--loss", required=True, choices=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    p.add_argument("--model", metavar="sft|base|scratch|DIR|ORG/NAME", help="what to start from: the SFT model "
                   "(default), the base model (default of --loss sft), random weights (trains the base model), a "
                   "Hugging Face folder of the Llama or Qwen2 architecture, or the name of one on the hub")
    _shared_options(p, ("base", "sft", "po"))
    p.add_argument("--prompts", type=int, default=200, metavar="N",
                   help="test prompts to answer per split (default: 200)")
    defaults = {}
    for loss in LOSSES:
        for knob, value in knobs(loss).items():
            defaults.setdefault(knob, value)
    for knob, value in defaults.items():
        p.add_argument(f"--{knob.replace('_', '-')}", dest=f"knob_{knob}", metavar="X", help=argparse.SUPPRESS,
                       type=_boolean if isinstance(value, bool) else float)
    return _config(**vars(p.parse_args(argv)))


def _config(**given):
    knobs_given = {k[len("knob_"):]: v for k, v in given.items() if k.startswith("knob_") and v is not None}
    return RunConfig(knobs=knobs_given, **{k: v for k, v in given.items() if not k.startswith("knob_")})


def parse_rm(argv=None) -> RunConfig:
    """The command line of train_rm.py as a RunConfig."""
    p = Parser(prog="train_rm.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train a Bradley-Terry reward model on preferences, measure it on pairs it has not seen, "
               "and show what it has learnt.", epilog=RM_EPILOG)
    p.add_argument("--model", default="sft", metavar="sft|base|DIR|ORG/NAME", help="what to start from, under a new "
                   "scalar head: the SFT model (default), the base model, a Hugging Face folder, or the name of one on "
                   "the hub; a reward model keeps its head and is trained on")
    for name, (default, metavar, text) in reward.OPTIONS.items():
        kind = {"action": "store_true"} if default is False else {"type": type(default or 0.0), "metavar": metavar}
        p.add_argument(f"--{name}", dest=f"knob_{name.replace('-', '_')}", default=default, help=text, **kind)
    _shared_options(p, ("rm",))
    return _config(loss="rm", **vars(p.parse_args(argv)))


def _shared_options(p, stages):
    p.add_argument("--data", default="world", metavar="FILE|ORG/NAME", help="preference data, JSONL, JSON or Parquet, "
                   "format detected from its fields, or a data set on the hub (default: the embedded world)")
    p.add_argument("--test-data", metavar="FILE",
                   help="held-out data (default: a seeded tenth of the prompts of --data)")
    p.add_argument("--axis", choices=("better", "safer"), help="which of PKU-SafeRLHF's two preferences to learn")
    p.add_argument("--system", metavar="TEXT", help="system message for every conversation that has none (default: "
                   "what the model's chat template does by itself)")
    for name, type_, text in (("lr", float, "peak learning rate"), ("epochs", int, "passes over the training data"),
                              ("batch-size", int, "pairs per optimiser step")):
        key = name.replace("-", "_")
        default = ", ".join(f"{stage} {STAGES[stage][key]}" for stage in stages)
        pretrained = ", ".join(f"{stage} {PRETRAINED[stage][key]}" for stage in stages if stage in PRETRAINED)
        p.add_argument(f"--{name}", type=type_, metavar="N",
                       help=f"{text} (default: {default}; pretrained: {pretrained})")
    p.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches per step: less memory, same "
                   "result (but for kto, which estimates its KL per micro-batch)")
    p.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens of prompt + response; longer "
                   "prompts are cut on the left, longer responses on the right; answers at the end may fill the "
                   "model's context (default: 512)")
    p.add_argument("--rows", type=int, metavar="N", help="use only the first N training rows")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of data, order and sampling (default: 0)")
    p.add_argument("--strict", action="store_true", help="a row that would be dropped is an error instead")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda, else mps, else cpu)")
    p.add_argument("--precision", choices=("bf16", "tf32", "fp32"), help="of matrix products; weights are float32 "
                   "always. fp32: exact, slow on a GPU. tf32 (NVIDIA): the same numbers rounded to 10 bits before they "
                   "are multiplied. bf16: to 7 bits, and results too: the fastest and smallest, good enough for training, "
                   "off by some 0.2 nats a response (default: bf16 on cuda, fp32 elsewhere)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model for training: the same numbers but "
                   "for rounding, steps faster by a sixth on a CPU after about a minute of compiling; pays in long runs")
    p.add_argument("--gradient-checkpointing", action="store_true", help="compute activations a second time instead of "
                   "keeping them: a third more time, a fraction of their memory, the same result")
    p.add_argument("--out", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    p.add_argument("--resume", action="store_true", help="continue this very run from its last checkpoint after a kill")
    p.add_argument("--fresh", nargs="?", const="base", choices=("base", "sft", "run"), metavar="base|sft|run",
                   help="redo from this stage on, although it is done (--fresh alone: from base)")


def _boolean(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def pick_device(name: str) -> torch.device:
    """"auto" is CUDA, else Apple's mps, else the CPU. UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda:") and distributed.size() > 1:
        raise UserError(f"--device {name}: each of the {distributed.size()} processes has its own; say --device cuda")
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # to each process of a machine its own
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def exit_on_user_error(main):
    """Run `main`; a UserError becomes one line and exit code 2, Ctrl-C a hint at --resume."""
    try:
        main()
        distributed.stop()
    except UserError as error:
        sys.exit(_complain(f"error: {error}", 2))
    except torch.OutOfMemoryError as error:
        sys.exit(_complain(f"error: out of memory ({str(error).splitlines()[0]}): go on with --gradient-checkpointing "
                           "--resume, or start again with --accumulate or a smaller --max-length", 2))
    except OSError as error:  # a disk that is full, a folder that cannot be made
        sys.exit(_complain(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; run the same command with --resume to go on from the last checkpoint", 130))
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            sys.exit(_complain(f"error: torch.compile cannot do this here ({str(error).splitlines()[0]}): leave out "
                               "--compile", 2))
        distributed.let_main_speak()  # such as a connection to a process that has ended
        raise


def _complain(line, code):
    distributed.let_main_speak()
    print(line, file=sys.stderr)
    return code
