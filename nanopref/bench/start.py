"""Seconds from the start of the process to the first finished optimiser step, beside TRL's.

    python -m nanopref.bench --parts start --peers                # the table
    python -m nanopref.bench.start FOLDER FILE MARK best|default  # TRL's side: trains, writes MARK after a step

DPO on 512 pairs of the embedded world, 8 a step, from the shipped base model. Ours is `python train_po.py`: once with
everything to be done, once with the reference's log-probs read from its cache. Theirs reads the same folder and file
with transformers, and trains with TRL's DPOTrainer in the configurations of nanopref/bench/peers.py: "best" computes
the reference's log-probs of all pairs before the first step, as ours does, "default" those of a step within it. A
process counts until its first step is logged, and is then killed.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanopref.bench.peers import dpo_config
from nanopref.bench.setting import interleaved, ratio, spread
from nanopref.errors import UserError
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import ROOT, SHIPPED_BASE, pick_device
from nanopref.world import labels

PAIRS, BATCH, LR = 512, 8, 1e-5


def main(argv=None) -> None:
    """TRL's side."""
    p = Parser(prog="nanopref.bench.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", metavar="FOLDER", help="a model folder in Hugging Face's layout")
    p.add_argument("data", metavar="FILE", help='JSONL of {"prompt", "chosen", "rejected"}')
    p.add_argument("mark", metavar="MARK", type=Path, help="a file that is written when the first step is done")
    p.add_argument("how", choices=("best", "default"), help="TRL's configuration")
    train_with_trl(**vars(p.parse_args(argv)))


def measure(rounds: int, peers: bool) -> list[dict]:
    """The table: what an import costs, our first step, with `peers` TRL's."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        train, test, mark = scratch / "train.jsonl", scratch / "test.jsonl", scratch / "mark"
        write_pairs(train, "train", PAIRS)
        write_pairs(test, "test_id", BATCH)  # with a test file of its own all pairs are trained on, as by TRL
        command = ["train_po.py", "--loss", "dpo", "--model", SHIPPED_BASE, "--data", train, "--test-data", test,
                   "--epochs", 1, "--batch-size", BATCH, "--lr", LR, "--out"]
        cached, metrics = scratch / "cached", "*/*/metrics.jsonl"
        first_sign([*command, cached], cached, metrics)  # leaves the cache
        theirs = lambda how: lambda: first_sign(["-m", "nanopref.bench.start", SHIPPED_BASE, train, mark, how],
                                                scratch, mark.name)
        contenders = {
            "import torch": lambda: first_sign(["-c", "import torch"]),
            "import train_po": lambda: first_sign(["-c", "import train_po"]),
            "ours": lambda: first_sign([*command, out := tempfile.mkdtemp(dir=scratch)], Path(out), metrics),
            "ours, reference cached": lambda: first_sign([*command, cached], cached, metrics),
            **{f"TRL, {how}": theirs(how) for how in ("best", "default") if peers}}
        seconds = interleaved(contenders, rounds)
    return [{"until the first step": name, "seconds": spread(times),
             **{f"of {other}": ratio(times, seconds[other]) for other in seconds if other.startswith("TRL")}}
            for name, times in seconds.items()]


def write_pairs(path: Path, split: str, n: int) -> None:
    """n pairs of a split of the embedded world as JSONL of {"prompt", "chosen", "rejected"}."""
    labels.write_rows(path, [{"prompt": row["question"], "chosen": row[f"response_{row['overall_response']}"],
                             "rejected": row[f"response_{3 - row['overall_response']}"]}
                            for row in labels.pairs(split, n, seed=0)])


def first_sign(arguments, folder: Path = None, sign: str = None) -> None:
    """Runs Python until it has written something to a file of `folder` with a name like `sign`, and kills it; without a
    folder until it ends. The file is deleted. UserError if it ends without a sign."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # users have compiled modules
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=errors, stderr=errors,
                                   start_new_session=True, env=environment)
        try:
            ended, signs = False, []
            while not (ended or signs):
                time.sleep(0.01)
                ended = process.poll() is not None
                signs = [path for path in folder.glob(sign) if path.stat().st_size] if folder else []
            if (folder or process.returncode) and not signs:
                errors.seek(0)
                raise UserError(f"{' '.join(map(str, arguments))}: ended before its first step: {errors.read()[-500:]}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for path in signs:  # not before: the process might write another
                path.unlink()


def train_with_trl(model: str, data: str, mark: Path, how: str) -> None:
    """DPOTrainer from the folder and the file alone, as its user writes it; ends with the first step."""
    try:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import DPOTrainer
    except ImportError as error:
        raise UserError(f"TRL is not installed ({error.name} is missing): pip install trl") from None

    class Mark(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            mark.write_text("done")
            control.should_training_stop = True

    config = dpo_config(mark.parent / "trl", BATCH, how == "best", pick_device("auto").type, num_train_epochs=1,
                        learning_rate=LR, save_strategy="no")
    with open(data) as lines:
        DPOTrainer(AutoModelForCausalLM.from_pretrained(model), processing_class=AutoTokenizer.from_pretrained(model),
                   train_dataset=Dataset.from_list([json.loads(line) for line in lines]), callbacks=[Mark()],
                   args=config).train()


if __name__ == "__main__":
    exit_on_user_error(main)
