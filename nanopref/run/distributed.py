"""Several processes, one run: what `torchrun --nproc_per_node=N train_po.py ...` needs besides PyTorch's own engine.

Every process reads the same data, draws the same batches and keeps the whole model. Of each batch it takes every N-th
example; DistributedDataParallel averages the gradients, so all take the same step. The main process alone writes and
prints. In a run that torchrun has not started nothing here does anything, and torch.distributed is not set up.
"""
import os
import sys
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from nanopref.errors import UserError


def size() -> int:
    """The number of processes. Like the two below known from torchrun's environment variables, before `start`."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1  # some clusters set the first alone


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def start(device) -> None:
    """Joins the other processes, the first time it is called. UserError for a device that cannot share the work."""
    if size() == 1 or dist.is_initialized():
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{device.type} cannot be shared by {size()} processes: add --device cpu, or start without "
                        "torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def stop() -> None:
    """Leaves the others; for the end of a run that went well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def let_main_speak() -> None:
    """For a process that fails. Mostly the main one fails of the same cause, or did so first: it says why, and torchrun
    ends the others while they wait here. Who is still alive after this has something of its own to say."""
    if not is_main():
        time.sleep(10)  # a busy machine starts processes seconds apart


def wait() -> None:
    """Returns when all processes are here: what the main one has written until now is there for all."""
    if size() > 1:
        dist.barrier()


def from_main(function):
    """What function() returns; it is called in the main process only."""
    if size() == 1:
        return function()
    result = [function() if is_main() else None]
    dist.broadcast_object_list(result)
    return result[0]


def together(items: list) -> list:
    """The items of all processes in one list, the tensors in them detached and on the CPU."""
    if size() == 1:
        return items
    lists = [None] * size()
    dist.all_gather_object(lists, tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), items))
    return sum(lists, [])


def shared(function, items: list) -> list:
    """function(items), a list with one result per item, where each process works on every N-th item only."""
    if size() == 1:
        return function(items)
    results = [None] * size()  # of every process
    dist.all_gather_object(results, function(items[rank()::size()]))
    return [results[i % size()][i // size()] for i in range(len(items))]


def gathered(seq):
    """A losses.Seq of the responses of all processes, as many of each (B,) -> (N B,), without gradient."""
    if size() == 1:
        return seq
    parts = [[torch.empty_like(tensor) for _ in range(size())] for tensor in seq]
    for part, tensor in zip(parts, seq):
        dist.all_gather(part, tensor.detach())
    return type(seq)(*map(torch.cat, parts))


def parallel(forward):
    """training.Forward with gradients that are averaged over the processes in every backward pass. Its parameters are
    made equal here. Without device_ids, as batches are on their device already."""
    return DistributedDataParallel(forward, gradient_as_bucket_view=True) if size() > 1 else forward


def averaging(forward, is_last: bool):
    """The context of a forward pass whose gradient is averaged only if `is_last`: of several micro-batches one does."""
    return nullcontext() if size() == 1 or is_last else forward.no_sync()
