"""What every contender of the benchmark is given: one model, one set of pairs, one way to be timed."""
import math
import random
import statistics
import time
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanopref.batch import CHOSEN, REJECTED, Example
from nanopref.logps import score
from nanopref.model import Config, Transformer

# name -> architecture, pairs a step, lengths in tokens: a prompt's (least, most), a response's (median, least, most).
USUAL = dict(batch=8, prompt=(20, 120), response=(50, 10, 200))
SIZES = {
    "S": (dict(vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4),
          USUAL),
    "M": (dict(vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
               num_key_value_heads=2), USUAL),
    "124M": (dict(vocab_size=50304, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                  num_attention_heads=12, tie_word_embeddings=True),
             dict(batch=8, prompt=(200, 400), response=(300, 100, 600)))}
EOS, PAD = 1, 0  # token ids; texts use those from 3 on


def model_of(size: str, device="cpu", **changes) -> Transformer:
    """The model of SIZES[size] with random weights, the same every time."""
    torch.manual_seed(0)
    return Transformer(Config(**{"max_position_embeddings": 2048, "eos_token_id": EOS, "pad_token_id": PAD,
                                 "bos_token_id": 2, **SIZES[size][0], **changes})).to(device)


def pairs_of(size: str, n: int, seed=0) -> list[Example]:
    """n pairs of random tokens: prompts of uniform length, responses log-normal as real ones are (sigma 0.6)."""
    vocab, given, rng = SIZES[size][0]["vocab_size"], SIZES[size][1], random.Random(seed)
    ids = lambda k: [rng.randrange(3, vocab) for _ in range(k)]
    median, least, most = given["response"]
    response = lambda: ids(min(most, max(least, round(rng.lognormvariate(math.log(median), 0.6)))) - 1) + [EOS]
    return [Example(ids(rng.randint(*given["prompt"])), [response(), response()], [CHOSEN, REJECTED]) for _ in range(n)]


def with_reference(model, examples) -> list[Example]:
    """The examples with the model's own log-probs as the reference's: the step then starts where training does. (With
    numbers made up, margins of hundreds of nats make gradients so small, denormal, that a CPU is ten times slower.)"""
    return [replace(e, ref_logps=logps) for e, logps in zip(examples, score(model, examples))]


def interleaved(contenders: dict, rounds: int, before=lambda: None) -> dict:
    """{name: seconds of each round} of {name: function without arguments}: every round runs all of them, one after the
    other, so that a machine whose speed drifts is as slow for each. One round before does not count."""
    seconds = {name: [] for name in contenders}
    for i in range(rounds + 1):
        before()
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def flops(run) -> int:
    """Floating-point operations that run() executes in matrix products, attention included (masked parts of a score
    matrix too, as they are computed); the backward pass if there is one. By what is dispatched, not by formula."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # so attention is plain products
        run()
    return counter.get_total_flops()


def product(device, dtype) -> tuple:
    """(function, its floating-point operations): a product of two large square matrices, as this machine is allowed to
    run it: the rate that a training step cannot exceed."""
    n = 1024 if torch.device(device).type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: [a @ b for _ in range(60)], 60 * 2 * n ** 3


def spread(values, digits=2) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def ratio(theirs, ours) -> str:
    """How many times faster: the median over rounds of their seconds / ours, with the least and the most."""
    return spread([a / b for a, b in zip(theirs, ours)])
