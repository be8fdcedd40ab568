"""What a training step needs in memory: an estimate before the run, the measured peak after it.

Training keeps float32 master weights (4 bytes a parameter), gradients (4) and AdamW's two moments (8): 16 bytes a
parameter, 8 GB for 0.5 B. bf16 is used for the matrix products only (autocast): a bf16 weight has 8 significant bits,
so an update of less than 1/512 of a weight would round to nothing, and at the learning rates of preference training
nearly all of them are.
"""
import ctypes
import os
import sys

import torch

from nanopref.batch import collate
from nanopref.logps import LOGITS
from nanopref.model import rope_tables

try:
    import resource
except ImportError:  # Windows has none
    resource = None

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory(device) -> None:
    """Has the C library keep what a step on a CPU frees, as the next step takes the same again: asking the system each
    time costs several percent of it (README's first command: 129 s without, 119 and 122 with). Numbers stay the same.
    Only glibc can do this; MALLOC_ variables of the environment win."""
    if device.type != "cpu" or sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2 ** 20)  # bytes; smaller blocks come from the heap: the most glibc allows
        mallopt(M_TRIM_THRESHOLD, 2 ** 30)       # so many free ones at its end are not given back


def saved_bytes(function) -> int:
    """Bytes that autograd keeps for the backward pass of `function()`; views of one tensor count once."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if not tensor.is_leaf:  # parameters are counted as weights
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def estimate(model, examples, micro_batch: int, forward, autocast) -> dict:
    """Bytes by purpose of one step on `examples`, `micro_batch` of them at a time; forward(batch) is the step's own.

    What is kept for backward is measured on the longest and the shortest example, and drawn on as a straight line in
    the number of tokens to the longest micro-batch possible. (The line does not start at 0: bf16 copies of the weights
    are kept once.) So it holds for any precision and for gradient checkpointing. What an allocator keeps of freed
    blocks comes on top.
    """
    by_length = sorted(examples, key=lambda e: -e.n_tokens)
    first, last, longest = by_length[0], by_length[-1], collate(by_length[:micro_batch])
    device, n_tokens = next(model.parameters()).device, longest.example.numel()  # padding included

    def kept(example):
        with autocast:
            return saved_bytes(lambda: forward(collate([example]).to(device)))

    def kept_by_a_block():
        x = torch.zeros(1, first.n_tokens, model.config.hidden_size, device=device, requires_grad=True)
        cos, sin = rope_tables(torch.arange(first.n_tokens, device=device)[None], model.config, torch.float32)
        with autocast:
            return saved_bytes(lambda: model.model["layers"][0](x, cos, sin, None, None))

    most, least = kept(first), kept(last)
    per_token = (most - least) / (first.n_tokens - last.n_tokens) if first.n_tokens > last.n_tokens else 0
    activations = most + per_token * (n_tokens - first.n_tokens) if per_token else most * n_tokens / first.n_tokens
    if model.gradient_checkpointing:  # and one block at a time, while it is computed again
        activations += kept_by_a_block() * n_tokens / first.n_tokens
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    n_logits = 0 if model.config.num_labels else len(longest.target) * model.config.vocab_size
    return {"weights": sum(sizes), "gradients": sum(sizes),
            "AdamW": 2 * sum(sizes) + 2 * max(sizes),  # and two temporaries of the parameter at hand
            "activations": int(activations),
            "logits": 3 * 4 * min(LOGITS, n_logits)}  # logits, their softmax, its gradient


def peak_in_words(device) -> str:
    """The most memory in use so far: what PyTorch allocated on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    elif device.type == "mps":
        peak = torch.mps.driver_allocated_memory()
    elif resource is None:
        return "peak of memory not measured on Windows"
    else:  # ru_maxrss is in bytes on macOS, in KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"measured peak of memory {peak / 1e9:.2f} GB"


def in_words(parts: dict) -> str:
    """The estimate as one line."""
    shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return f"memory of a step, estimated: {sum(parts.values()) / 1e9:.2f} GB ({shown})"
