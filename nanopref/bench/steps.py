"""Our own ladder: a DPO step in the plain way, and what each idea adds, up to the step of train_po.py."""
import copy
import statistics
from dataclasses import replace

import torch

import train_po
from nanopref.batch import collate
from nanopref.bench.setting import SIZES, flops, interleaved, model_of, pairs_of, product, ratio, spread, with_reference
from nanopref.logps import at_least_float32, padded_logps, predictors, sequence_logps
from nanopref.losses import Seq, dpo, reduce
from nanopref.run.config import RunConfig
from nanopref.run.training import Forward, matrix_precision, new_optimizer

LR = 1e-5


def packed_logps(model, examples) -> torch.Tensor:
    """Packed rows without padding, but a response an example, so the prompt twice, and logits everywhere. (R,)"""
    batch = collate(alone(examples)).to(next(model.parameters()).device)
    logits = model.logits(model(batch.input_ids, batch.position_ids, batch.attn_mask())).flatten(0, 1)
    logps = at_least_float32(logits).log_softmax(-1)[predictors(batch), batch.target]
    return logps.new_zeros(len(batch.lengths)).index_add(0, batch.response, logps)


def response_only_logps(model, examples) -> torch.Tensor:
    """The same with the head at response tokens only. (R,)"""
    return sequence_logps(model, collate(alone(examples)).to(next(model.parameters()).device))


def alone(examples) -> list:
    """Every response as an example of its own."""
    return [replace(e, responses=[response], roles=[role], ref_logps=None)
            for e in examples for response, role in zip(e.responses, e.roles)]


def dpo_loss(logps, ref_logps) -> torch.Tensor:
    """The mean DPO loss of log-probs of chosen and rejected responses in turn, nats summed over the response."""
    logps, ref_logps = logps.view(-1, 2), ref_logps.view(-1, 2)
    return reduce(dpo(*(Seq(logps[:, k], ref_logps[:, k], torch.ones_like(logps[:, k])) for k in (0, 1))))


def plain_step(forward, optimizer, examples, autocast, reference=None) -> float:
    """A DPO step by one of the functions above; with `reference`, a second model, its log-probs are computed, too."""
    with autocast:
        logps = forward(examples)
    ref_logps = logps.new_tensor([e.ref_logps for e in examples])
    if reference is not None:
        with autocast, torch.no_grad():
            ref_logps = reference(examples)
    loss = dpo_loss(logps, ref_logps)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def measure(size: str, n: int, rounds: int, peers: bool, device) -> list[dict]:
    """The ladder on n pairs a round, and TRL: a row each. "of matmul": operations executed a second, over those of a
    large matrix product in the same round (the naive step's causal attention may leave out half of what is counted for
    it). tokens: of prompts and responses, a prompt once a pair, without padding."""
    model, batch = model_of(size, device), SIZES[size][1]["batch"]
    examples = with_reference(model, pairs_of(size, n))
    chunks = [examples[i:i + batch] for i in range(0, n, batch)]
    config = RunConfig(loss="dpo").on(device)
    autocast = matrix_precision(config, device)

    def contender(step, logps_of=None, compiled=False):
        """A pass over the pairs, on a policy and an optimiser of its own."""
        policy = copy.deepcopy(model).train()
        forward = Forward(logps_of or sequence_logps, torch.compile(policy, dynamic=True) if compiled else policy)
        optimizer = new_optimizer(policy, LR)
        return lambda: [step(forward, optimizer, chunk) for chunk in chunks]

    plain = lambda logps_of, reference=None: contender(
        lambda *given: plain_step(*given, autocast, reference and Forward(logps_of, reference)), logps_of)
    ours = lambda *given: train_po.step(config, *given, autocast)
    contenders = {"naive: padded rows, two models": plain(padded_logps, copy.deepcopy(model)),
                  "+ cached reference": plain(padded_logps), "+ no padding": plain(packed_logps),
                  "+ response-only head": plain(response_only_logps), "+ shared prompt (train_po.py)": contender(ours),
                  "+ compile": contender(ours, compiled=True)}
    counted = {name: flops(run) for name, run in contenders.items() if name != "+ compile"}
    counted["+ compile"] = counted["+ shared prompt (train_po.py)"]  # the same products
    if peers:
        from nanopref.bench.peers import trl_steps
        contenders |= {f"TRL, {name}": trl_steps(model, examples, batch, name == "best", LR)
                       for name in ("best", "default")}
    precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
    contenders["a large product"], per_product = product(device, precision)
    seconds = interleaved(contenders, rounds)
    rates = [per_product / t for t in seconds.pop("a large product")]  # of every round
    others, rows = [name for name in seconds if name.startswith(("naive", "TRL"))], []
    n_tokens = sum(e.n_tokens for e in examples)
    for name, times in seconds.items():
        row = {"step": name, "pairs/s": spread([n / t for t in times], 1),
               "tokens/s": f"{n_tokens / statistics.median(times):,.0f}", "of matmul": "-"}
        if name in counted:
            row["of matmul"] = spread([counted[name] / t / rate for t, rate in zip(times, rates)])
        rows.append(row | {f"x {other.split(':')[0]}": ratio(seconds[other], times) for other in others})
    return rows
