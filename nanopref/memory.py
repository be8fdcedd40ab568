"""What a training step needs in memory: an estimate before the run, the measured peak after it.

Training keeps float32 master weights (4 bytes a parameter), gradients (4) and AdamW's two moments (8): 16 bytes a
parameter, 8 GB for 0.5 B. bf16 is used for the matrix products only (autocast): a bf16 weight has 8 significant bits, so
an update of less than 1/512 of a weight would round to nothing, and at the learning rates of preference training nearly
all of them are.
"""
import resource
import sys

import torch

from .batch import LOGITS, collate


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
    are kept once.) So it holds for any precision and for gradient checkpointing, and errs on the high side.
    """
    by_length = sorted(examples, key=lambda e: -e.n_tokens)
    longest, device = by_length[:micro_batch], next(model.parameters()).device

    def kept(example):
        with autocast:
            return saved_bytes(lambda: forward(collate([example]).to(device)))

    def kept_by_longest_batch():
        (n, most), (m, least) = ((e.n_tokens, kept(e)) for e in (by_length[0], by_length[-1]))
        per_token = (most - least) / (n - m) if n > m else most / n
        return int(most + per_token * (collate(longest).example.numel() - n))  # padding included

    activations = kept_by_longest_batch()
    if model.gradient_checkpointing:  # and one block at a time, while it is computed again
        model.gradient_checkpointing = False
        activations += (kept_by_longest_batch() - activations) // model.config.num_hidden_layers
        model.gradient_checkpointing = True
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    responses = 0 if model.config.num_labels else sum(sum(map(len, e.responses)) for e in longest)
    return {"weights": weights, "gradients": weights, "AdamW": 2 * weights, "activations": activations,
            "logits": 3 * 4 * min(LOGITS, responses * model.config.vocab_size)}  # logits, their softmax, its gradient


def peak(device) -> int:
    """The most bytes in use so far: what PyTorch allocated on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_words(parts: dict) -> str:
    """The estimate as one line."""
    shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return f"memory of a step, estimated: {sum(parts.values()) / 1e9:.2f} GB ({shown})"
