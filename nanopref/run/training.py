"""What the loops of train_po.py and train_rm.py share: their outer half, learning rate, checkpoints, giving up."""
import json
import time

import torch
from tqdm import tqdm

from nanopref.batch import batches
from nanopref.errors import UserError
from nanopref.run.checkpoint import has_model, load_model, load_state, save_model, sibling
from nanopref.run.disk import remove, write, writing
from nanopref.run.distributed import is_main, parallel, wait
from nanopref.run.memory import peak_in_words

SAVE_EVERY = 60  # seconds between checkpoints, or twenty times what the last one took: saving costs 5 % at most


class Forward(torch.nn.Module):
    """function(model, batch) as a module of its own: the one thing in a step that knows weights, and so what
    torch.compile and DistributedDataParallel wrap."""

    def __init__(self, function, model):
        super().__init__()
        self.function, self.model = function, model

    def forward(self, batch):
        return self.function(self.model, batch)


def new_forward(function, model, config):
    """The Forward of a run, compiled and shared between processes where that is asked for. Only the transformer is
    compiled, once for batches of all shapes, and only here: sampling goes on without."""
    return parallel(Forward(function, torch.compile(model, dynamic=True) if config.compile else model))


def matrix_precision(config, device):
    """The autocast context of --precision. tf32 and fp32 need none: they are how a GPU multiplies float32."""
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def new_optimizer(model, lr) -> torch.optim.Optimizer:
    """AdamW without weight decay. Fused on CUDA: the plain one makes a copy of all weights there."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0,
                             fused=next(model.parameters()).is_cuda)


def learning_rate(config, step, steps) -> float:
    """Linearly up over the first tenth of `steps`, then linearly down to 0."""
    return config.lr * min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))


def check_finite(step, loss, grad_norm, config, folder) -> None:
    """UserError where the loss or its gradient is NaN or infinite, before that is saved."""
    if not (abs(loss) < float("inf") and grad_norm < float("inf")):
        raise UserError(f"step {step}: loss {loss}, gradient norm {grad_norm}: training has diverged; lower "
                        f"--lr {config.lr}. The log up to here is kept in {folder}")


def announce(config, policy, tokenizer, examples, splits, counts, device) -> None:
    """Says what is about to be trained on what, and what was cut or dropped. UserError where they do not fit: a reward
    model as policy, fewer examples than one batch, or more tokens than the model's context."""
    if policy.config.num_labels and config.stage != "rm":
        raise UserError(f"--model {config.model}: a reward model, which cannot write; give a language model")
    n_parameters = sum(p.numel() for p in policy.parameters())
    print(f"{config.stage}: {config.loss} on {len(examples):,} examples, {n_parameters:,} parameters, {device}, "
          f"{config.precision}")
    notes = (splits.notes if splits else []) + [f"{n} {what}" for what, n in counts.items()]
    if examples and splits:
        header = examples[0].prompt[-tokenizer.header_length:]
        notes.append(f"a prompt ends with {tokenizer.shown(header)}, a response with "
                     f"{tokenizer.shown([tokenizer.eos_id])}")
    for note in notes:
        print(f"  {note}")
    if len(examples) < config.batch_size:
        raise UserError(f"{len(examples)} examples that {config.loss} can use are fewer than one batch of "
                        f"{config.batch_size}: see the counts above, give more rows that it can use, or lower "
                        "--batch-size")
    if config.max_length > policy.config.max_position_embeddings:
        raise UserError(f"--max-length {config.max_length} is more than this model's context of "
                        f"{policy.config.max_position_embeddings} tokens: lower it, longer rows are then cut and "
                        "counted")


def updates(config, examples, optimizer, checkpoints):
    """The outer half of a training loop: yields (examples of the step's batch, record) for every optimiser step still
    to do, with its learning rate set; record(row) takes what the step has to report, logs and shows it, and saves.

    A run that was interrupted goes on from its checkpoint (see Checkpoints.restore). UserError, before anything is
    saved, where the loss or its gradient is no finite number."""
    steps = len(examples) // config.batch_size * config.epochs
    first, tokens = checkpoints.restore(config, steps)
    began, name = time.time(), config.loss if config.stage == "po" else config.stage
    with tqdm(total=steps, initial=first, desc=name, disable=not is_main()) as progress:
        for step, chunk in enumerate(batches(examples, config.batch_size, config.seed, config.epochs)):
            if step < first:
                continue
            lr = learning_rate(config, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            tokens += sum(e.n_tokens for e in chunk)

            def record(row):
                check_finite(step, row["loss"], row["grad_norm"], config, checkpoints.folder)
                shown = [key for key in ("loss", "rewards/margins", "rewards/accuracies") if key in row]
                progress.set_postfix({key.split("/")[-1]: f"{row[key]:.3f}" for key in shown})
                progress.update()
                checkpoints.after(step, {"step": step, **row, "lr": lr, "tokens": tokens})

            yield chunk, record
    device = next(checkpoints.policy.parameters()).device
    print(f"{steps - first} steps, {tokens:,} tokens in {time.time() - began:.0f} s; {peak_in_words(device)}")


class Checkpoints:
    """The log and the checkpoint of one run: folder/checkpoint while it trains, folder/model when it is done."""

    def __init__(self, folder, policy, tokenizer, optimizer):
        self.folder, self.policy, self.tokenizer, self.optimizer = folder, policy, tokenizer, optimizer
        self.path, self.log = folder / "checkpoint", folder / "metrics.jsonl"
        self.saved_at, self.took = time.time(), 0.0

    def restore(self, config, steps) -> tuple[int, int]:
        """(step to go on from, tokens seen): `steps` if training is complete and only its report is missing, the
        checkpoint's with --resume, else 0. UserError for a checkpoint without --resume: it is not thrown away
        unasked."""
        rows = self.log.read_text(encoding="utf-8").splitlines(True) if self.log.exists() else []
        has_checkpoint, source, step = has_model(self.path), None, 0
        if config.fresh is None and len(rows) == steps and has_model(self.folder / "model"):
            source, step = self.folder / "model", steps
        elif config.fresh is None and has_checkpoint and not config.resume:
            raise UserError(f"{self.folder} was interrupted: add --resume to go on from its last checkpoint, or delete "
                            "the folder to start again")
        elif has_checkpoint and config.resume:
            source, step = self.path, load_state(self.path, self.optimizer)
            self.check_log(rows, step)
        self.complete = source == self.folder / "model"
        if config.resume and not source:
            print(f"--resume: nothing to resume in {self.folder}, so this begins at step 0")
        if source:
            self.policy.load_state_dict(load_model(source)[0].state_dict())
            print(f"resuming at step {step} of {steps}")
        wait()  # until every process has read this; then it may change
        if is_main():
            if not source:
                self.drop()
                remove(self.folder / "model")
            write(self.log, "".join(rows[:step]))
        return step, json.loads(rows[step - 1])["tokens"] if step else 0

    def check_log(self, rows, step) -> None:
        """UserError where the log does not reach as far as the checkpoint, as after a power cut."""
        if len(rows) < step:
            raise UserError(f"{self.log} has {len(rows)} rows, but the checkpoint beside it was made after step "
                            f"{step}: rows are lost. Delete {self.folder} to start again")
        for number, row in enumerate(rows[:step], 1):
            try:
                json.loads(row)["tokens"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{self.log}: row {number} is damaged. Delete {self.folder} to start again") from None

    def after(self, step, row) -> None:
        """Logs one step's `row`, and saves if it is time."""
        if not is_main():
            return
        with writing(self.log), self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if self.is_due(step):
            began = time.time()
            save_model(self.policy, self.tokenizer, self.path, (self.optimizer, step + 1))
            self.saved_at, self.took = time.time(), time.time() - began

    def is_due(self, step) -> bool:
        """Whether it is time to save."""
        return time.time() - self.saved_at > max(SAVE_EVERY, 20 * self.took)

    def finish(self) -> None:
        """Writes folder/model; the checkpoint has done its duty."""
        self.policy.eval()
        if is_main():
            if not self.complete:
                save_model(self.policy, self.tokenizer, self.folder / "model")
            self.drop()
        wait()

    def drop(self) -> None:
        """Deletes the checkpoint, and what a save killed between its renames has left of the one before."""
        for path in (self.path, sibling(self.path, ".old"), sibling(self.path, ".new")):
            remove(path)
