"""The SFT model that ships is what the command that is said to have made it makes, from the base model that ships.

`PYTHONPATH=. python tests/test_shipped.py` writes data/base/code.txt and data/sft/code.txt, which say what code makes these models:
run it where the slow test passes."""
import json
import math
from contextlib import nullcontext

import pytest
import torch
from commands import start_command
from safetensors.torch import load_file

import train_po
from nanopref.batch import batches
from nanopref.data.examples import encode
from nanopref.data.files import read
from nanopref.logps import sequence_logps
from nanopref.run.checkpoint import load_model
from nanopref.run.config import SHIPPED_BASE, SHIPPED_SFT, RunConfig
from nanopref.run.reuse import training_code
from nanopref.run.training import Forward, new_optimizer

LOG = [json.loads(line) for line in (SHIPPED_SFT / "metrics.jsonl").read_text().splitlines()]


class Enough(Exception):
    pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of runs in which `python train_po.py --loss sft` was stopped in its fourth step."""
    out, steps, original = tmp_path_factory.mktemp("runs"), [], train_po.step_metrics

    def three(parts):
        steps.append(1)
        if len(steps) > 3:
            raise Enough
        return original(parts)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(train_po, "step_metrics", three)
        train_po.train(RunConfig(loss="sft", device="cpu", out=str(out)))
    return out


def test_its_first_steps_are_those_of_its_log(begun):
    """1e-4 of a value: float32 sums over 1,400 tokens, in another order on another processor, differ by some 1e-6, and
    two updates of 1e-5 pass that on; one row less in the data, or another order of rows, changes the losses by 1e-2."""
    log, = begun.glob("world/sft-seed0-*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 3
    for row, shipped in zip(rows, LOG):
        assert row.keys() == shipped.keys()
        for key in row:
            assert row[key] == pytest.approx(shipped[key], rel=1e-4), (row["step"], key)


def test_it_is_the_model_at_the_end_of_its_log(begun):
    """Its loss on the batch of its last step is that of the last row, which was logged before the last update, to
    within what that update can do: at most lr for each of N parameters, hence lr sqrt(N) times the norm of the
    gradient, 4e-4 nats."""
    config, tokenizer = RunConfig(loss="sft", device="cpu"), load_model(SHIPPED_BASE)[1]
    rows = read(begun / "world" / "data-seed0" / "sft.jsonl").rows
    examples, _ = encode(tokenizer, rows, ("w",), config.max_length, config.seed)
    *_, last = batches(examples, config.batch_size, config.seed, config.epochs)
    assert len(examples) // config.batch_size * config.epochs == len(LOG)
    losses = {}
    for folder in (SHIPPED_SFT, SHIPPED_BASE):
        model, _ = load_model(folder, dtype=torch.float32)
        row = train_po.step(config, Forward(sequence_logps, model), new_optimizer(model, 0.0), last, nullcontext())
        losses[folder] = row["loss"]
    update = LOG[-1]["lr"] * math.sqrt(sum(p.numel() for p in model.parameters())) * LOG[-1]["grad_norm"]
    assert losses[SHIPPED_SFT] == pytest.approx(LOG[-1]["loss"], abs=update)
    assert losses[SHIPPED_BASE] > LOG[-1]["loss"] + 100 * update  # a model that has learnt less is noticed


@pytest.mark.slow
def test_its_command_makes_it_again(tmp_path):
    """The whole command, with as many threads as the machine has. On the processor that made them, the weights are
    the same bit for bit, with one thread or two. Another processor adds up in another order: without vector
    instructions, after 60 steps, the weights are 6e-6 of their way from the base model apart. 1e-3 leaves room for all
    468."""
    code, _, err = start_command("train_po.py", "--loss", "sft", "--fresh", "sft", "--prompts", 1, "--device", "cpu",
                                 "--out", tmp_path, threads=None)
    assert code == 0, err[-2000:]
    made, = tmp_path.glob("world/sft-seed0-*/model")
    made, shipped, base = (load_file(folder / "model.safetensors") for folder in (made, SHIPPED_SFT, SHIPPED_BASE))
    apart, moved = (math.sqrt(sum((other[name] - shipped[name]).square().sum().item() for name in shipped))
                    for other in (made, base))
    assert apart < 1e-3 * moved


def code_files() -> dict:
    """{file: what it must say}"""
    made = {SHIPPED_BASE: RunConfig(loss="sft", model="scratch"), SHIPPED_SFT: RunConfig(loss="sft")}
    return {folder / "code.txt": "".join(f"{sha}  {file}\n" for file, sha in training_code(config).items())
            for folder, config in made.items()}


@pytest.mark.slow
def test_the_code_that_it_names_is_this_one():
    for file, code in code_files().items():
        assert file.read_text() == code, "where the test above passes: PYTHONPATH=. python tests/test_shipped.py"


if __name__ == "__main__":
    for file, code in code_files().items():
        file.write_text(code)
