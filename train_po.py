"""Train a policy on preferences: configuration -> data -> policy and reference -> step-0 check -> loop -> report.

    python train_po.py --loss simpo                # on the embedded world; trains what it stands on first
    python train_po.py --loss dpo --beta 0.3
    python train_po.py --loss kto --data my.jsonl  # on your own data
    python train_po.py --loss sft                  # the stage before
"""
import contextlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from nanopref import examples as ex
from nanopref.batch import batches, by_role, collate, sequence_logps, step_counts
from nanopref.checkpoint import load_model, load_state, new_model, save_model
from nanopref.checks import step_0_check
from nanopref.config import ARCHITECTURE, SHIPPED_BASE, VOCABULARY, RunConfig, exit_on_user_error, parse, pick_device
from nanopref.errors import UserError
from nanopref.losses import LOSSES, reduce
from nanopref.metrics import step_metrics
from nanopref.reference import cached_logps
from nanopref.report import report

SAVE_EVERY = 50  # steps between checkpoints


def start_from(config: RunConfig) -> Path | None:
    """The model folder this run starts from, trained first where it has to be; None for random weights."""
    if config.model == "scratch":
        return None
    if config.model not in ("base", "sft"):
        return Path(config.model)
    if config.model == "base" and config.data == "world" and config.fresh != "base" and SHIPPED_BASE.exists():
        print(f"base model: the one shipped in {SHIPPED_BASE.relative_to(SHIPPED_BASE.parent.parent)}")
        return SHIPPED_BASE
    return train(config.before()) / "model"


def train(config: RunConfig) -> Path:
    """One run, from nothing to its report; returns its folder. A finished run is found and reused."""
    # 1. What it stands on, and where it goes.
    start = start_from(config)
    folder = config.folder(start)
    if (folder / "report.json").exists() and config.fresh is None:
        print(f"{config.stage}: done already, reusing {folder}")
        return folder
    device = pick_device(config.device)
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    torch.manual_seed(config.seed)

    # 2. Data, policy and reference.
    if config.stage == "base":
        splits, texts = None, ex.plain_texts(config)
        policy, tokenizer = new_model(texts, VOCABULARY[config.data == "world"], ARCHITECTURE)
        examples, counts = ex.text_examples(tokenizer, texts, config.max_length), {}
    else:
        splits = ex.load(config)
        policy, tokenizer = load_model(start)
        rows = splits.sft if config.stage == "sft" else splits.train
        examples, counts = ex.encode(tokenizer, rows, LOSSES[config.loss].inputs, config.max_length, config.seed)
    n_parameters = sum(p.numel() for p in policy.parameters())
    print(f"{config.stage}: {config.loss} on {len(examples):,} examples, {n_parameters:,} parameters, {device}")
    for note in [*(splits.notes if splits else []), *(f"{n} {what}" for what, n in counts.items())]:
        print(f"  {note}")
    if len(examples) < config.batch_size:
        raise UserError(f"{len(examples)} examples that {config.loss} can use are fewer than one batch of "
                        f"{config.batch_size}: see the counts above, give more rows that it can use, or lower --batch-size")
    policy.to(device).train()
    if config.stage == "po":
        examples = cached_logps(start, policy, examples, Path(config.out) / "cache", autocast, config.fresh)

    # 3. Step-0 check and loop.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**asdict(config), "start": start and str(start)}, indent=2) + "\n")
    loop(config, folder, policy, tokenizer, examples, device, autocast)

    # 4. Report.
    report(config, folder, start, policy, tokenizer, splits, autocast)
    return folder


def loop(config: RunConfig, folder: Path, policy, tokenizer, examples, device, autocast) -> None:
    """The optimisation itself: from the step-0 check (or the checkpoint, with --resume) to folder/model."""
    loss, steps = LOSSES[config.loss], len(examples) // config.batch_size * config.epochs
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
    first, tokens, checkpoint, log_path = 0, 0, folder / "checkpoint", folder / "metrics.jsonl"
    if config.resume and checkpoint.exists():
        policy.load_state_dict(load_model(checkpoint)[0].state_dict())
        first, extra = load_state(checkpoint, optimizer)
        tokens = extra["tokens"]
        print(f"resuming at step {first} of {steps}")
    else:
        shutil.rmtree(checkpoint, ignore_errors=True)
        with autocast:
            step_0_check(policy, examples[:config.batch_size], config)
        (folder / "report.json").unlink(missing_ok=True)  # from here on this run is no longer done
    kept = log_path.read_text().splitlines(True)[:first] if first else []
    log_path.write_text("".join(kept))

    began = time.time()
    progress = tqdm(total=steps, initial=first, desc=config.loss if config.stage == "po" else config.stage)
    with log_path.open("a") as log, progress:
        for step, chunk in enumerate(batches(examples, config.batch_size, config.seed, config.epochs)):
            if step < first:
                continue
            lr = config.lr * min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))  # up, then down to 0
            for group in optimizer.param_groups:
                group["lr"] = lr
            micro = len(chunk) // config.accumulate
            parts = [collate(chunk[i:i + micro]) for i in range(0, len(chunk), micro)]
            n_terms, n_tokens = step_counts(parts, loss.pairs)
            total, logged = 0.0, []
            for part in parts:
                part = part.to(device)
                with autocast:
                    logps = sequence_logps(policy, part)
                seqs = dict(zip(("w", "l", "kl"), by_role(part, logps)))
                out = loss.fn(*(seqs[name] for name in loss.inputs), **config.knobs)
                value = reduce(out, n_terms, n_tokens)  # over the step's pairs and tokens, so accumulation is exact
                value.backward()
                total += value.item()
                logged.append((seqs, out))
                tokens += (part.example >= 0).sum().item()
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).item()
            if not (abs(total) < float("inf") and grad_norm < float("inf")):
                raise UserError(f"step {step}: loss {total}, gradient norm {grad_norm}: training has diverged; lower "
                                f"--lr {config.lr}. Checkpoint and log up to here are kept in {folder}")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row = {"step": step, "loss": total, **step_metrics(logged), "grad_norm": grad_norm, "lr": lr,
                   "tokens": tokens}
            log.write(json.dumps(row) + "\n")
            shown = [key for key in ("loss", "rewards/margins", "rewards/accuracies") if key in row]
            progress.set_postfix({key.split("/")[-1]: f"{row[key]:.3f}" for key in shown})
            progress.update()
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < steps:
                log.flush()
                save_model(policy, tokenizer, checkpoint, (optimizer, step + 1, {"tokens": tokens}))
    print(f"{steps - first} steps, {tokens:,} tokens in {time.time() - began:.0f} s")
    save_model(policy.eval(), tokenizer, folder / "model")
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    exit_on_user_error(lambda: train(parse()))
