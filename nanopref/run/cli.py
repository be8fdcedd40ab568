"""The command lines of train_po.py and train_rm.py, and how every command ends: in one line if something is wrong."""
import argparse
import signal
import sys

import torch

from nanopref.errors import UserError, one_line, shown
from nanopref.losses import LOSSES, help_text, knobs
from nanopref.run import distributed
from nanopref.run.config import PRETRAINED, REWARD_OPTIONS, STAGES, RunConfig

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
# Options of train_rm.py, whose defaults are in nanopref/run/config.py: (argument in --help, explanation).
REWARD_HELP = {
    "center": ("ETA", "add ETA (r_chosen + r_rejected)^2 to the loss: labels leave the origin of a reward open, "
               "this pulls it to 0; 0.01 is enough (default: 0)"),
    "margin": ("M", "demand that r_chosen - r_rejected be at least M times the difference of the two scores that "
               "the data gives (Llama 2): score_chosen and score_rejected of a file; on the embedded world the gold "
               "scores, so there this option alone sees the truth (default: 0, labels alone)"),
    "ranking": ("K", "on the embedded world: learn from rankings of K responses instead of pairs, as many responses "
                "in all (InstructGPT); a file of rankings is recognised by itself (default: 2)"),
    "length_penalty": ("LAM", "reward r - LAM |length - L0|, in training and ever after; LAM in reward per token, "
                       "L0 the mean training length. Measured at 0.03: the head learns its way around it, length bias "
                       "b = 0.22 against 0.21 without (default: 0)"),
    "length_alpha": ("A", "reward r (A + L0) / (A + length), the course report's division by length, in training and "
                     "ever after; A in tokens. Measured at 25: as little, b = 0.23 (default: no division)"),
    "balance_length": (None, "draw the training pairs again, so that among pairs that differ about as much in "
                       "length the longer response is chosen as often as the shorter one. Measured: over-corrects, "
                       "b = -0.13, and costs 0.02 of accuracy"),
    "heads": (None, "one new head per group of annotators on a shared trunk; needs the field `group` in every "
              "row"),
}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one line."""

    def error(self, message):
        distributed.let_main_speak()
        self.exit(2, one_line(f"{self.prog}: error: {message} (see --help)") + "\n")


def parse(argv=None) -> RunConfig:
    """The command line of train_po.py as a RunConfig. Mistakes end in one line and exit code 2."""
    p = Parser(prog="train_po.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train a policy on preferences, judge it against its start, and show what happened.",
               epilog=EPILOG + "".join(help_text(name) for name in LOSSES))
    p.add_argument("--loss", required=True, choices=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    p.add_argument("--model", type=folder, metavar="sft|base|scratch|DIR|ORG/NAME", help="what to start from: the SFT "
                   "model (default), the base model (default of --loss sft), random weights (trains the base model), a "
                   "Hugging Face folder of the Llama or Qwen2 architecture, or the name of one on the hub")
    defaults = {knob: value for loss in LOSSES for knob, value in knobs(loss).items()}
    for knob, value in defaults.items():  # the epilog explains them, loss by loss
        p.add_argument(flag(knob), dest=f"knob_{knob}", metavar="X", help=argparse.SUPPRESS,
                       type=boolean if isinstance(value, bool) else float)
    add_data_options(p)
    add_training_options(p, ("base", "sft", "po"))
    p.add_argument("--prompts", type=whole, default=200, metavar="N",
                   help="test prompts to answer per split (default: 200)")
    add_run_options(p)
    return config_of(p.parse_args(argv))


def parse_rm(argv=None) -> RunConfig:
    """The command line of train_rm.py as a RunConfig."""
    p = Parser(prog="train_rm.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train a Bradley-Terry reward model on preferences, measure it on pairs it has not seen, "
               "and show what it has learnt.", epilog=RM_EPILOG)
    p.add_argument("--model", type=folder, default="sft", metavar="sft|base|DIR|ORG/NAME", help="what to start from, "
                   "under a new scalar head: the SFT model (default), the base model, a Hugging Face folder, or the "
                   "name of one on the hub; a reward model keeps its head and is trained on")
    for name, default in REWARD_OPTIONS.items():
        metavar, text = REWARD_HELP[name]
        number = whole if name == "ranking" else float
        kind = {"action": "store_true"} if default is False else {"type": number, "metavar": metavar}
        p.add_argument(flag(name), dest=f"knob_{name}", default=default, help=text, **kind)
    add_data_options(p)
    add_training_options(p, ("rm",))
    add_run_options(p)
    return config_of(p.parse_args(argv), loss="rm")


def config_of(args: argparse.Namespace, **more) -> RunConfig:
    """The run that was asked for; an argument knob_NAME that was given is the knob NAME of its loss."""
    given = {**vars(args), **more}
    of_loss = {name: given.pop(name) for name in list(given) if name.startswith("knob_")}
    return RunConfig(knobs={name.removeprefix("knob_"): value for name, value in of_loss.items() if value is not None},
                     **given)


def add_data_options(p) -> None:
    """Which rows are trained on and tested on."""
    p.add_argument("--data", default="world", metavar="FILE|ORG/NAME", help="preference data, JSONL, JSON or Parquet, "
                   "format detected from its fields, or a data set on the hub (default: the embedded world)")
    p.add_argument("--test-data", metavar="FILE",
                   help="held-out data (default: a seeded tenth of the prompts of --data)")
    p.add_argument("--axis", choices=("better", "safer"), help="which of PKU-SafeRLHF's two preferences to learn")
    p.add_argument("--system", type=unicode_text, metavar="TEXT", help="system message for every conversation that has "
                   "none (default: what the model's chat template does by itself)")
    p.add_argument("--rows", type=whole, metavar="N", help="use only the first N training rows")
    p.add_argument("--strict", action="store_true", help="a row that would be dropped is an error instead")
    p.add_argument("--seed", type=whole, default=0, metavar="N", help="of data, order and sampling (default: 0)")


def add_training_options(p, stages) -> None:
    """How to train; `stages` are those whose defaults --help names."""
    for name, type_, text in (("lr", float, "peak learning rate"), ("epochs", whole, "passes over the training data"),
                              ("batch_size", whole, "pairs per optimiser step")):
        default = ", ".join(f"{stage} {STAGES[stage][name]}" for stage in stages)
        pretrained = ", ".join(f"{stage} {PRETRAINED[stage][name]}" for stage in stages if stage in PRETRAINED)
        p.add_argument(flag(name), type=type_, metavar="N",
                       help=f"{text} (default: {default}; pretrained: {pretrained})")
    p.add_argument("--accumulate", type=whole, default=1, metavar="N", help="micro-batches per step: less memory, same "
                   "result (but for kto, which estimates its KL per micro-batch)")
    p.add_argument("--max-length", type=whole, default=512, metavar="N", help="tokens of prompt + response; longer "
                   "prompts are cut on the left, longer responses on the right; answers at the end may fill the "
                   "model's context (default: 512)")


def add_run_options(p) -> None:
    """Where to compute, where to write, what to do again."""
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda, else mps, else cpu)")
    p.add_argument("--precision", choices=("bf16", "tf32", "fp32"), help="of matrix products; weights are float32 "
                   "always. fp32: exact, slow on a GPU. tf32 (NVIDIA): the same numbers rounded to 10 bits before they "
                   "are multiplied. bf16: to 7 bits, and results too: the fastest and smallest, good enough for "
                   "training, off by some 0.2 nats a response (default: bf16 on cuda, fp32 elsewhere)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model for training: the same numbers "
                   "but for rounding, steps faster by a sixth on a CPU after about a minute of compiling; pays in long "
                   "runs")
    p.add_argument("--gradient-checkpointing", action="store_true", help="compute activations a second time instead of "
                   "keeping them: a third more time, a fraction of their memory, the same result")
    p.add_argument("--out", type=folder, default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    p.add_argument("--resume", action="store_true", help="continue this very run from its last checkpoint after a kill")
    p.add_argument("--fresh", nargs="?", const="base", choices=("base", "sft", "run"), metavar="base|sft|run",
                   help="redo from this stage on, although it is done (--fresh alone: from base)")


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return f"--{name.replace('_', '-')}"


def boolean(text: str) -> bool:
    """An argparse type: true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {shown(text)}")
    return text.lower() == "true"


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or whole(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {shown(text)}")
    return whole(text)


def whole(text: str) -> int:
    """An argparse type: a whole number that fits into 64 bits, as seeds and sizes must."""
    try:
        if len(text) < 30 and -2**63 <= int(text) < 2**63:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number of at most 18 digits, got {shown(text)}")


def folder(text: str) -> str:
    """An argparse type: a name that can be printed, as those of a run's files are."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name without control characters, got {shown(text)}")
    return text


def unicode_text(text: str) -> str:
    """An argparse type: a text that can be tokenised. A byte of the command line that is no UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected UTF-8 text, got {shown(text)}") from None
    return text


def exit_on_user_error(main):
    """Run `main`; a UserError becomes one line and exit code 2, Ctrl-C a hint at --resume."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # see nanopref/__init__.py
    try:
        main()
        distributed.stop()
    except UserError as error:
        sys.exit(complain(f"error: {error}", 2))
    except torch.OutOfMemoryError as error:
        sys.exit(complain(f"error: out of memory ({str(error).splitlines()[0]}): go on with --gradient-checkpointing "
                           "--resume, or start again with --accumulate or a smaller --max-length", 2))
    except OSError as error:  # a disk that is full, a folder that cannot be made
        sys.exit(complain(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(complain("interrupted; run the same command with --resume to go on from the last checkpoint", 130))
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            sys.exit(complain(f"error: torch.compile cannot do this here ({str(error).splitlines()[0]}): leave out "
                               "--compile", 2))
        distributed.let_main_speak()  # such as a connection to a process that has ended
        raise


def complain(line: str, code: int) -> int:
    """Prints the line where errors go; returns the exit code."""
    distributed.let_main_speak()
    print(one_line(line), file=sys.stderr)
    return code
