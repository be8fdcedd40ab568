"""Train a reward model on preferences: configuration -> data -> trunk and head -> loop -> report.

    python train_rm.py                                  # on the embedded world, from its SFT model
    python train_rm.py --length-penalty 0.03            # with a rule against length
    python train_rm.py --ranking 4                      # from rankings of four responses
    python train_rm.py --model DIR --data my.jsonl      # on a pretrained model, a Hugging Face folder
    torchrun --nproc_per_node=2 train_rm.py             # on two GPUs: see nanopref/run/distributed.py

The reward model is the transformer with one number in place of the vocabulary, read at a response's last token and
trained on -log sigmoid(r_chosen - r_rejected). Out comes folder/model, a Hugging Face classifier with one label.
"""
from pathlib import Path

import nanopref  # noqa: F401  before torch: see there what Ctrl-C does while that is imported
import torch

from nanopref.batch import collate
from nanopref.data import examples as ex
from nanopref.errors import UserError
from nanopref.judge.measures_rm import score_pairs
from nanopref.judge.report_rm import report_rm
from nanopref.reward import batch_loss, by_rank, reward_metrics, rewards
from nanopref.run import dataset, distributed
from nanopref.run.checkpoint import load_model
from nanopref.run.cli import exit_on_user_error, parse_rm
from nanopref.run.config import RunConfig, pick_device
from nanopref.run.disk import alone_in, begin
from nanopref.run.distributed import averaging, from_main, is_main, rank, shared, size, together
from nanopref.run.memory import estimate, in_words, keep_freed_memory
from nanopref.run.reuse import Identity, identity, is_done
from nanopref.run.training import Checkpoints, announce, matrix_precision, new_forward, new_optimizer, updates
from train_po import start_from


def train(config: RunConfig) -> Path:
    """One run, from nothing to its report; returns its folder. A finished run is found and reused."""
    # 1. What it stands on, and where it goes.
    device = pick_device(config.device)
    config = config.on(device)
    distributed.start(device)
    start = start_from(config)
    this = identity(config, start)
    with alone_in(this.folder):
        if not from_main(lambda: is_done(config, this)):
            run(config, device, start, this)
    return this.folder


def run(config: RunConfig, device, start: Path, this: Identity) -> None:
    """What is left to do of the run: all of it, or from its checkpoint on, or its report."""
    folder, autocast = this.folder, matrix_precision(config, device)
    keep_freed_memory(device)
    torch.manual_seed(config.seed)  # decides the new head

    # 2. Data, trunk and head.
    splits, options = dataset.load(config, config.knobs["ranking"]), config.knobs
    groups = sorted({row.group or "" for row in splits.train}) if options["heads"] else None
    if groups and "" in groups:
        raise UserError(f"--heads needs the field `group` in every row of {config.data}")
    model, tokenizer = load_model(start, dtype=torch.float32, reward=True, groups=groups)
    examples, counts = ex.encode(tokenizer, splits.train, ("w", "between", "l"), config.max_length, groups=groups)
    tests = dataset.held_out_pairs(tokenizer, splits, config.max_length, groups)
    if options["margin"] and any(e.scores is None for e in examples):
        raise UserError(f"--margin needs a score for each response of {config.data}: score_chosen, score_rejected")
    if options["balance_length"]:
        examples = ex.length_balanced(examples, config.seed)
    model.length_rule = length_rule(options, examples) or model.length_rule
    announce(config, model, tokenizer, examples, splits, counts, device)
    model.to(device)
    model.gradient_checkpointing = config.gradient_checkpointing
    print(in_words(estimate(model, examples, config.batch_size // config.accumulate // size(),
                            lambda batch: rewards(model, batch), autocast)))

    # 3. Loop, between two judgements.
    begin(folder, this.described(config, start))
    score_own = lambda pairs: score_pairs(model, pairs, splits.gold)
    with autocast:
        before = {name: shared(score_own, test) for name, test in tests.items()}
    loop(config, folder, model, tokenizer, examples, autocast)
    with autocast:
        after = {name: shared(score_own, test) for name, test in tests.items()}

    # 4. Report.
    if is_main():
        report_rm(config, folder, {name: {"before": before[name], "after": after[name]} for name in tests}, splits)


def length_rule(options, examples) -> dict | None:
    """What is kept in the model's config.json: see reward.by_length."""
    lengths = [len(response) for e in examples for response in e.responses]
    if options["length_alpha"] is not None:
        return {"alpha": options["length_alpha"], "mean": sum(lengths) / len(lengths)}
    if options["length_penalty"]:
        return {"penalty": options["length_penalty"], "mean": sum(lengths) / len(lengths)}
    return None


def loop(config: RunConfig, folder: Path, model, tokenizer, examples, autocast) -> None:
    """The optimisation itself: from the start (or the checkpoint, with --resume) to folder/model."""
    optimizer = new_optimizer(model, config.lr)
    forward = new_forward(rewards, model, config)
    checkpoints = Checkpoints(folder, model, tokenizer, optimizer)
    for chunk, record in updates(config, examples, optimizer, checkpoints):
        record(step(config, forward, optimizer, chunk, autocast))
    checkpoints.finish()


def step(config: RunConfig, forward, optimizer, chunk, autocast) -> dict:
    """One update on the examples of `chunk`; `forward` gives the rewards (R,) of a batch. Returns what is logged."""
    device, own = next(forward.parameters()).device, chunk[rank()::size()]  # of several processes' work
    micro, values, ranked = len(own) // config.accumulate, [], []
    for start in range(0, len(own), micro):
        part = collate(own[start:start + micro])
        with autocast, averaging(forward, is_last=start + micro == len(own)):
            reward = forward(part.to(device))
        part.scores = part.scores.to(device)  # the rest stays: whose a response is must be known here without a wait
        loss = batch_loss(reward, part, config.knobs["margin"], config.knobs["center"])
        value = loss / len(chunk)  # a mean over the step's examples: exact, whatever share of them this is
        (value * size()).backward()  # gradients are averaged over the processes, where this wants their sum
        values.append(value.detach())
        ranked += by_rank(reward, part)
    grad_norm = torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": sum(together(values)).item(), **reward_metrics(together(ranked)), "grad_norm": grad_norm.item()}


if __name__ == "__main__":
    exit_on_user_error(lambda: train(parse_rm()))
