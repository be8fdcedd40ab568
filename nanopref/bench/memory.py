"""What a DPO step takes above weights and gradients with a real vocabulary, beside full logits and beside no head.

    python -m nanopref.bench --parts memory   # the table
    python -m nanopref.bench.memory ours      # one of its rows (padded, ours, no-head, trl), in MB

One forward and backward of model S with a vocabulary of 49,152 on 8 pairs, prompts of 64 tokens and responses of 256.
Each row in a process of its own, where weights and gradients are there before. On CUDA PyTorch counts; on Linux the
kernel does: the most memory the process held minus what it held before. Other systems cannot say it.

Linux's C library keeps freed blocks of up to 32 MB for later, between blocks in use, so a process holds more than it
needs, and not the same each time. The second column is with that limit at 4 MB: nearer to what the step needs.
"""
import argparse
import contextlib
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from nanopref.batch import CHOSEN, REJECTED, Example, collate
from nanopref.bench.setting import EOS, model_of
from nanopref.bench.steps import dpo_loss
from nanopref.errors import UserError
from nanopref.logps import padded_logps, sequence_logps
from nanopref.run.cli import Parser, exit_on_user_error
from nanopref.run.config import ROOT, pick_device

VOCABULARY, PAIRS, PROMPT, RESPONSE = 49_152, 8, 64, 256
ROWS = {"padded": "padded rows, logits everywhere", "ours": "ours: shared prompt, chunked head at responses",
        "no-head": "ours without a head: the floor", "trl": "TRL, best"}


def main(argv=None) -> None:
    """Prints one row's figure in MB."""
    p = Parser(prog="nanopref.bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=ROWS, help=", ".join(f"{name} ({text})" for name, text in ROWS.items()))
    print(round(measure_one(p.parse_args(argv).what, pairs(PAIRS, PROMPT, RESPONSE, VOCABULARY)) / 1e6))


def measure(peers: bool) -> list[dict]:
    """The table, TRL's row with `peers`; where memory cannot be measured, one row that says so."""
    if not is_measured(pick_device("auto")):
        return [{"memory": "not measured: needs Linux or a CUDA GPU"}]

    def megabytes(what, **environment):
        done = subprocess.run([sys.executable, "-m", "nanopref.bench.memory", what], stdout=subprocess.PIPE, text=True,
                              cwd=ROOT, env={**os.environ, **environment})
        if done.returncode:
            sys.exit(done.returncode)
        return int(done.stdout.splitlines()[-1])

    return [{"what": text, "MB above weights and gradients": megabytes(what),
             "blocks of 4 MB given back": megabytes(what, MALLOC_MMAP_THRESHOLD_=str(2 ** 22))}
            for what, text in ROWS.items() if what != "trl" or peers]


def pairs(n: int, prompt: int, response: int, vocab_size: int) -> list[Example]:
    """n pairs of exactly these lengths in tokens, both responses alike; made-up reference log-probs."""
    generator = torch.Generator().manual_seed(0)
    ids = lambda k: torch.randint(3, vocab_size, (k,), generator=generator).tolist()
    return [Example(ids(prompt), [ids(response - 1) + [EOS] for _ in range(2)], [CHOSEN, REJECTED], [-100.0, -101.0])
            for _ in range(n)]


def measure_one(what: str, examples) -> int:
    """Bytes of one row of the table."""
    device = pick_device("auto")
    if not is_measured(device):
        raise UserError("memory can be measured on Linux and on a CUDA GPU only")
    model = model_of("S", device, vocab_size=VOCABULARY).train()
    if what == "trl":
        from nanopref.bench.peers import trl_backward
        _, rows, make_gradients = trl_backward(model, [*examples, *pairs(1, 4, 4, VOCABULARY)], len(examples), True)
        make_gradients(rows[:1])  # the shortest: makes gradients, and what libraries make once
        return peak_of(lambda: make_gradients(rows[1:]), device)
    return above_gradients(model, examples, what)


def above_gradients(model, examples, what: str = "ours") -> int:
    """Bytes that one forward and backward takes where weights and gradients are there before."""
    backward(model, pairs(1, 4, 4, model.config.vocab_size), what)  # makes gradients, and what libraries make once
    return peak_of(lambda: backward(model, examples, what), next(model.parameters()).device)


def backward(model, examples, what: str = "ours") -> None:
    """The DPO loss of `examples` and its gradients; with "no-head" of something else that needs hidden states only."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext():
        if what == "no-head":
            batch = collate(examples).to(device)
            return model(batch.input_ids, batch.position_ids, batch.attn_mask()).sum().backward()
        if what == "padded":
            logps = padded_logps(model, examples)
        else:
            logps = sequence_logps(model, collate(examples).to(device))
    dpo_loss(logps, logps.new_tensor([e.ref_logps for e in examples])).backward()


def is_measured(device) -> bool:
    """Whether `peak_of` can tell."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def peak_of(run, device) -> int:
    """The most bytes in use while run() runs, minus those in use before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of freed memory would count as in use before
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of /proc/self/status: VmRSS is held now, VmHWM the most since the mark was cleared."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    exit_on_user_error(main)
