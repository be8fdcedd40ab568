"""What one training run is: its configuration, with defaults resolved and mistakes refused."""
import dataclasses
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanopref import losses
from nanopref.data.hub import data_files
from nanopref.errors import UserError
from nanopref.run import distributed

ROOT = Path(__file__).parent.parent.parent
SHIPPED_BASE = ROOT / "data" / "base"
SHIPPED_SFT = ROOT / "data" / "sft"  # of seed 0, made by: python train_po.py --loss sft

# Per stage: learning rate, epochs, pairs (or texts) per optimiser step. The learning rate decides nearly everything:
# every loss gains at 3e-5, DPO still at 1e-4, while SimPO, with nothing to hold it, begins to break at 5e-5 (see
# nanopref/findings/README.md).
STAGES = {"base": dict(lr=2e-3, epochs=2, batch_size=64),
          "sft": dict(lr=3e-4, epochs=3, batch_size=32),
          "po": dict(lr=3e-5, epochs=1, batch_size=32),
          "rm": dict(lr=3e-4, epochs=1, batch_size=32)}
# The same for a pretrained model (--model DIR): hundreds of times larger, so a step must be smaller. Batch and epochs
# are the course report's.
PRETRAINED = {"sft": dict(lr=1e-5, epochs=1, batch_size=16),
              "po": dict(lr=1e-5, epochs=1, batch_size=16),
              "rm": dict(lr=3e-5, epochs=1, batch_size=16)}
# The base stage on a file's own text, which is little: several passes.
FILE_BASE = dict(lr=1e-3, epochs=6, batch_size=32)
# The transformer that is trained from scratch: 1.8 M parameters with a vocabulary of 1,024.
ARCHITECTURE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True)
VOCABULARY = {True: 1024, False: 2048}  # tokens of a tokenizer trained here: on the embedded world, on other texts
# Options of train_rm.py and their defaults; nanopref/run/cli.py explains them, nanopref/reward.py has their formulas.
REWARD_OPTIONS = dict(center=0.0, margin=0.0, ranking=2, length_penalty=0.0, length_alpha=None, balance_length=False,
                      heads=False)


def check_reward_options(given: dict) -> dict:
    """REWARD_OPTIONS overridden by `given`. UserError for an unknown option or a value that makes no sense."""
    options = {**REWARD_OPTIONS, **given}
    for name, value in given.items():
        if name not in REWARD_OPTIONS:
            raise UserError(f"a reward model has no option {name}; it has {', '.join(REWARD_OPTIONS)}")
        if type(value) in (int, float) and not (0 <= value < float("inf")):
            raise UserError(f"--{name.replace('_', '-')} must be a number of at least 0, got {value}")
    if options["ranking"] < 2:
        raise UserError(f"--ranking takes at least 2 responses, got {options['ranking']}")
    if options["length_penalty"] and options["length_alpha"] is not None:
        raise UserError("--length-penalty and --length-alpha are two rules for one thing: give one of them")
    return options


@dataclass(kw_only=True)
class DataConfig:
    """What decides which rows are trained on and which are held out; nanopref/run/dataset.py reads them."""
    data: str = "world"           # the embedded world, a file, or a data set on the hub
    test_data: str | None = None
    axis: str | None = None       # of PKU-SafeRLHF: "better" or "safer"
    system: str | None = None     # message for conversations that have none
    rows: int | None = None       # of the training data: the first so many
    strict: bool = False          # a row that would be dropped is an error
    seed: int = 0                 # of the embedded world's rows; of a run also of its order and samples
    out: str = "runs"             # folder of all runs, and of the world's files

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """UserError for options that do not go together or lie out of range."""
        if self.data == "world" and (self.test_data or self.axis or self.system is not None):
            raise UserError("--test-data, --axis and --system go with --data FILE: the embedded world has its own")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        check_at_least_1(self, "rows")

    @functools.cached_property
    def files(self) -> dict:
        """{"train": Path, maybe "test": Path} of --data and --test-data, downloaded if they name a hub repository."""
        files = data_files(self.data)
        given = data_files(self.test_data) if self.test_data else {}
        return {**files, "test": given.get("test", given["train"])} if given else files


@dataclass
class RunConfig(DataConfig):
    """Everything that decides the weights that come out, and a few things that do not (reuse.NOT_DECIDING). Whatever is
    not given gets the default of the run's stage; only the precision waits for the device: see `on`."""
    loss: str                    # a key of losses.LOSSES, or "rm": the Bradley-Terry reward model of train_rm.py
    knobs: dict = field(default_factory=dict)  # of the loss; of "rm" its REWARD_OPTIONS
    model: str | None = None     # "scratch", "base", "sft", a folder or a model on the hub
    lr: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    max_length: int = 512
    prompts: int = 200
    device: str = "auto"
    precision: str | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    fresh: str | None = None
    resume: bool = False

    def __post_init__(self):
        self.resolve_defaults()
        self.validate()

    def resolve_defaults(self) -> None:
        """Puts the defaults of the loss and the stage in place of what is not given. UserError for an unknown loss."""
        self.knobs = {**(REWARD_OPTIONS if self.loss == "rm" else losses.knobs(self.loss)), **self.knobs}
        self.model = self.model or ("base" if self.loss == "sft" else "sft")
        if self.model not in ("scratch", "base", "sft"):
            defaults = PRETRAINED[self.stage]
        else:
            defaults = FILE_BASE if self.stage == "base" and self.data != "world" else STAGES[self.stage]
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def validate(self) -> None:
        """UserError for a setting that makes no sense, alone or with another."""
        if self.loss == "rm":
            check_reward_options(self.knobs)
        else:
            losses.check_knobs(self.loss, self.knobs)
        super().validate()
        if self.knobs.get("ranking", 2) > 2 and self.data != "world":
            raise UserError("--ranking goes with the embedded world; a file of rankings is recognised by its field "
                            "`ranked`")
        if self.model == "scratch" and self.loss != "sft":
            raise UserError("--model scratch trains the base model, on plain text: it goes with --loss sft")
        if self.precision not in (None, "bf16", "tf32", "fp32"):
            raise UserError(f"--precision must be bf16, tf32 or fp32, not {self.precision}")
        if not 0 < self.lr < 1:
            raise UserError(f"--lr must lie between 0 and 1, got {self.lr}")
        check_at_least_1(self, "epochs", "batch_size", "accumulate", "prompts")
        n = distributed.size()
        if self.batch_size % (self.accumulate * n):
            processes = f" times the {n} processes; or train this stage first without torchrun" if n > 1 else ""
            raise UserError(f"{self.stage}: --batch-size {self.batch_size} must be a multiple of --accumulate "
                            f"{self.accumulate}{processes}")
        if self.max_length < 32:
            raise UserError(f"--max-length must be at least 32 tokens, got {self.max_length}")

    def on(self, device: torch.device) -> "RunConfig":
        """This run with the precision that it has on `device`. UserError for one that the device does not have."""
        if self.precision == "tf32" and device.type != "cuda":
            raise UserError("--precision tf32 is a format of NVIDIA GPUs: take fp32 or bf16 here")
        # bf16 needs hardware for it to be faster: every CUDA GPU of interest has it
        default = "bf16" if device.type == "cuda" else "fp32"
        return dataclasses.replace(self, precision=self.precision or default)

    @property
    def stage(self) -> str:
        """base, sft, po or rm."""
        return "base" if self.model == "scratch" else self.loss if self.loss in ("sft", "rm") else "po"

    def before(self) -> "RunConfig":
        """The run whose model this one starts from, with that stage's own defaults."""
        again = self.fresh if self.fresh in ("base", "sft") and self.model in (self.fresh, "sft") else None
        same = {name: getattr(self, name) for name in (
            "data", "test_data", "axis", "system", "max_length", "strict", "device", "precision", "compile",
            "gradient_checkpointing", "out", "resume")}
        return RunConfig(loss="sft", model="base" if self.model == "sft" else "scratch",
                         seed=self.seed if self.model == "sft" else 0, fresh=again, **same)

    @property
    def shipped_start(self) -> Path | None:
        """The model of the embedded world that this run starts from and that comes with the project, if it does."""
        if self.data != "world":
            return None
        if self.model == "base" and self.fresh != "base":
            return SHIPPED_BASE
        if self.model == "sft" and self.seed == 0 and self.fresh not in ("base", "sft"):
            return SHIPPED_SFT
        return None

def check_at_least_1(config, *names) -> None:
    """UserError for a field of `config` that is given and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


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
