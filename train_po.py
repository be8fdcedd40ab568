"""Train a policy on preferences: configuration -> data -> policy and reference -> step-0 check -> loop -> report.

    python train_po.py --loss simpo                # on the embedded world; trains what it stands on first
    python train_po.py --loss dpo --beta 0.3
    python train_po.py --loss kto --data my.jsonl  # on your own data
    python train_po.py --loss sft                  # the stage before
    python train_po.py --loss dpo --model DIR --data my.jsonl  # on a pretrained model, a Hugging Face folder
    torchrun --nproc_per_node=2 train_po.py --loss dpo         # on two GPUs: see nanopref/run/distributed.py
"""
from pathlib import Path

import nanopref  # noqa: F401  before torch: see there what Ctrl-C does while that is imported
import torch

from nanopref.batch import collate, step_counts
from nanopref.data import examples as ex
from nanopref.data.hub import model_folder
from nanopref.judge.report import report
from nanopref.logps import by_role, sequence_logps
from nanopref.losses import LOSSES, reduce
from nanopref.run import dataset, distributed
from nanopref.run.checkpoint import load_model, new_model
from nanopref.run.checks import step_0_check
from nanopref.run.cli import exit_on_user_error, parse
from nanopref.run.config import ARCHITECTURE, VOCABULARY, RunConfig, pick_device
from nanopref.run.disk import alone_in, begin
from nanopref.run.distributed import averaging, from_main, gathered, rank, size, together
from nanopref.run.memory import estimate, in_words, keep_freed_memory
from nanopref.run.metrics import step_metrics
from nanopref.run.reference import cached_logps
from nanopref.run.reuse import Identity, about_shipped, identity, is_done
from nanopref.run.training import Checkpoints, announce, matrix_precision, new_forward, new_optimizer, updates


def start_from(config: RunConfig) -> Path | None:
    """The model folder this run starts from, trained first where it has to be; None for random weights."""
    if config.model == "scratch":
        return None
    if config.model not in ("base", "sft"):
        return model_folder(config.model)
    if config.shipped_start:
        print(about_shipped(config))
        return config.shipped_start
    return train(config.before()) / "model"


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


def run(config: RunConfig, device, start: Path | None, this: Identity) -> None:
    """What is left to do of the run: all of it, or from its checkpoint on, or its report."""
    folder, autocast = this.folder, matrix_precision(config, device)
    keep_freed_memory(device)
    torch.manual_seed(config.seed)

    # 2. Data, policy and reference.
    if config.stage == "base":
        splits, texts = None, dataset.plain_texts(config)
        policy, tokenizer = new_model(texts, VOCABULARY[config.data == "world"], ARCHITECTURE)
        examples, counts = ex.text_examples(tokenizer, texts, config.max_length), {}
    else:
        splits = dataset.load(config)
        policy, tokenizer = load_model(start, dtype=torch.float32)  # master weights: see nanopref/run/memory.py
        rows = splits.sft if config.stage == "sft" else splits.train
        examples, counts = ex.encode(tokenizer, rows, LOSSES[config.loss].inputs, config.max_length, config.seed)
    announce(config, policy, tokenizer, examples, splits, counts, device)
    policy.to(device).train()
    policy.gradient_checkpointing = config.gradient_checkpointing
    print(in_words(estimate(policy, examples, config.batch_size // config.accumulate // size(),
                            lambda batch: sequence_logps(policy, batch), autocast)))
    if config.stage == "po":
        cache = Path(config.out) / "cache"
        examples = cached_logps(start, policy, examples, cache, autocast, config.precision, config.fresh)

    # 3. Step-0 check and loop.
    begin(folder, this.described(config, start))
    loop(config, folder, policy, tokenizer, examples, autocast)

    # 4. Report.
    report(config, folder, start, policy, tokenizer, splits, autocast)


def loop(config: RunConfig, folder: Path, policy, tokenizer, examples, autocast) -> None:
    """The optimisation itself: from the step-0 check (or the checkpoint, with --resume) to folder/model."""
    optimizer = new_optimizer(policy, config.lr)
    with autocast:
        step_0_check(policy, examples[:config.batch_size], config)
    forward = new_forward(sequence_logps, policy, config)
    checkpoints = Checkpoints(folder, policy, tokenizer, optimizer)
    for chunk, record in updates(config, examples, optimizer, checkpoints):
        record(step(config, forward, optimizer, chunk, autocast))
    checkpoints.finish()


def step(config: RunConfig, forward, optimizer, chunk, autocast) -> dict:
    """One update on the examples of `chunk`; `forward` gives the log-probs (R,) of a batch. Returns what is logged. The
    device is waited for once, at the end."""
    loss, device = LOSSES[config.loss], next(forward.parameters()).device
    own = chunk[rank()::size()]  # of several processes' work
    n_terms, n_tokens = step_counts(chunk, loss.pairs)
    micro, values, logged = len(own) // config.accumulate, [], []
    for start in range(0, len(own), micro):
        part = collate(own[start:start + micro]).to(device)
        with autocast, averaging(forward, is_last=start + micro == len(own)):
            logps = forward(part)
        seqs = by_role(part, logps)
        given = [gathered(seqs["kl"]) if name == "kl" else seqs[name] for name in loss.inputs]
        out = loss.fn(*given, **config.knobs)
        value = reduce(out, n_terms, n_tokens)  # over the step's pairs and tokens: exact, whatever share this is
        (value * size()).backward()  # gradients are averaged over the processes, where this wants their sum
        values.append(value.detach())
        logged.append((seqs, out))
    grad_norm = torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": sum(together(values)).item(), **step_metrics(together(logged)), "grad_norm": grad_norm.item()}


if __name__ == "__main__":
    exit_on_user_error(lambda: train(parse()))
