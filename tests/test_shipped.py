"""The SFT model that ships is what the command that is said to have made it makes, from the base model that ships."""
import json
import math
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

import train_po
from nanopref.batch import batches, sequence_logps
from nanopref.data.examples import encode
from nanopref.run import dataset
from nanopref.run.checkpoint import load_model
from nanopref.run.config import SHIPPED_BASE, SHIPPED_SFT, RunConfig
from nanopref.run.training import Forward, new_optimizer

LOG = [json.loads(line) for line in (SHIPPED_SFT / "metrics.jsonl").read_text().splitlines()]


class Enough(Exception):
    pass


def test_its_first_steps_are_those_of_its_log(tmp_path, monkeypatch):
    """The command itself, stopped in its fourth step. 1e-4 of a value: float32 sums over 1,400 tokens, in another order
    on another processor or with another number of threads, differ by some 1e-6, and two updates of 1e-5 pass that on;
    one row less in the data, or another order of rows, changes the losses by 1e-2."""
    steps = []

    def three(parts):
        steps.append(1)
        if len(steps) > 3:
            raise Enough
        return original(parts)

    original = train_po.step_metrics
    monkeypatch.setattr(train_po, "step_metrics", three)
    with pytest.raises(Enough):
        train_po.train(RunConfig(loss="sft", device="cpu", out=str(tmp_path)))
    log, = tmp_path.glob("world/sft-seed0-*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 3
    for row, shipped in zip(rows, LOG):
        assert row.keys() == shipped.keys()
        for key in row:
            assert row[key] == pytest.approx(shipped[key], rel=1e-4), (row["step"], key)


def test_it_is_the_model_at_the_end_of_its_log(tmp_path):
    """Its loss on the batch of its last step is that of the last row, which was logged before the last update, to
    within what that update can do: at most lr for each of N parameters, hence lr sqrt(N) times the norm of the
    gradient (4e-4 nats). The base model is a thousand times further away."""
    config = RunConfig(loss="sft", device="cpu", out=str(tmp_path))
    tokenizer = load_model(SHIPPED_BASE)[1]
    examples, _ = encode(tokenizer, dataset.load(config).sft, ("w",), config.max_length, config.seed)
    *_, last = batches(examples, config.batch_size, config.seed, config.epochs)
    assert len(examples) // config.batch_size * config.epochs == len(LOG)
    losses = {}
    for folder in (SHIPPED_SFT, SHIPPED_BASE):
        model, _ = load_model(folder, dtype=torch.float32)
        row = train_po.step(config, Forward(sequence_logps, model), new_optimizer(model, 0.0), last, nullcontext())
        losses[folder] = row["loss"]
    update = LOG[-1]["lr"] * math.sqrt(sum(p.numel() for p in model.parameters())) * LOG[-1]["grad_norm"]
    assert losses[SHIPPED_SFT] == pytest.approx(LOG[-1]["loss"], abs=update)
    assert losses[SHIPPED_BASE] > LOG[-1]["loss"] + 100 * update


@pytest.mark.slow
def test_its_command_makes_it_again(tmp_path):
    """python train_po.py --loss sft --fresh sft."""
    folder = train_po.train(RunConfig(loss="sft", fresh="sft", prompts=1, device="cpu", out=str(tmp_path)))
    made, shipped, base = (load_file(f / "model.safetensors") for f in (folder / "model", SHIPPED_SFT, SHIPPED_BASE))
    apart, moved = (math.sqrt(sum(((other[name] - shipped[name]) ** 2).sum().item() for name in shipped))
                    for other in (made, base))
    assert apart < 0.02 * moved
