"""The step-0 check: stop a run whose reference, precision or gradient is wrong before it costs anything."""
import math

import torch

from nanopref.batch import collate
from nanopref.errors import UserError
from nanopref.logps import by_role, sequence_logps
from nanopref.losses import LOSSES, grad_of, reduce

# How far two computations of a response's log-prob may lie apart: nats per square root of its tokens, as rounding
# errors add up like a random walk; root mean square over the batch. The same model in another packing, measured on the
# shipped SFT model on a CPU: 3e-7 in float32, 0.0005 to 0.0016 in bf16. A side of the pairs that is off by 1 nat gives
# 0.07 at 100 tokens.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 2e-2}


def step_0_check(policy, examples, config) -> None:
    """Before the first update the policy IS the reference. On the first batch, UserError unless

    - the policy gives every response the log-prob that was computed for the reference (SFT has none), to TOLERANCE;
    - a loss with a reference has the same value at policy = reference whatever the log-probs are: log 2 for DPO;
    - the hand-derived gradient with respect to the log-probs is autograd's.

    Prints the loss beside its value at policy = reference, which for SimPO, ORPO, ... depends on the text."""
    entry, device = LOSSES[config.loss], next(policy.parameters()).device
    batch = collate(examples)
    with torch.no_grad():
        logps = sequence_logps(policy, batch.to(device)).cpu().double()  # on the CPU: mps has no float64
    logps.requires_grad_()

    def loss_of(seqs):
        out = entry.fn(*(seqs[name] for name in entry.inputs), **config.knobs)
        return reduce(out, n_tokens=seqs["w"].length.sum().item())

    seqs, expected = by_role(batch, logps), None
    loss = loss_of(seqs)
    if entry.reference or not batch.ref_logps.isnan().all():
        apart = (logps.detach() - batch.ref_logps) / batch.lengths.sqrt()
        off = apart.square().mean().sqrt().item()
        if not off <= TOLERANCE[config.precision]:  # NaN is off, too
            raise UserError(f"step-0 check: the policy's log-probs are {off:.2g} nats per root token from those cached "
                            f"for the reference, rounding explains {TOLERANCE[config.precision]:.2g}: another model, "
                            f"dropout, or a stale file. --fresh run computes {config.out}/cache anew")
        expected = loss_of({name: s._replace(logp=s.ref_logp) for name, s in seqs.items()}).item()
    if entry.reference:
        zero = {name: s._replace(logp=0 * s.ref_logp, ref_logp=0 * s.ref_logp) for name, s in seqs.items()}
        if not math.isclose(loss_of(zero).item(), expected, rel_tol=1e-9):
            raise UserError(f"step-0 check: at policy = reference {config.loss} is {expected:.6f} here, but "
                            f"{loss_of(zero).item():.6f} on other log-probs: a loss with a reference must not know the "
                            "difference. Look at it in nanopref/losses.py")
    check_gradient(config, batch, seqs, loss, logps, expected)


def check_gradient(config, batch, seqs, loss, logps, expected) -> None:
    """The last point of step_0_check, and the line that it prints."""
    autograd = torch.autograd.grad(loss, logps)[0]
    entry = LOSSES[config.loss]
    hand = grad_of(config.loss, **{name: seqs[name] for name in entry.inputs}, **config.knobs)
    n_terms = len(seqs["w"].logp) + (len(seqs["l"].logp) if not entry.pairs else 0)
    constant = torch.zeros(len(seqs["kl"].logp), dtype=torch.float64)  # KTO's KL estimate is not trained
    by_hand = torch.cat([hand.w / n_terms + hand.nll_w / seqs["w"].length.sum(), hand.l / n_terms, constant])
    by_autograd = torch.cat([autograd[batch.roles == role] for role in (0, 1, 2)])
    off = (by_hand - by_autograd).abs().max().item()
    size = autograd.abs().max().item()
    note = " (log 2)" if expected and math.isclose(expected, math.log(2), rel_tol=1e-6) else ""
    beside = f", at policy = reference {expected:.6f}{note}" if expected is not None else ""
    print(f"step 0: loss {loss.item():.6f}{beside}; largest d loss / d logp {size:.6f}, hand-derived off by {off:.1e}")
    if not off <= 1e-9 * max(size, 1):  # both in float64: only the last digits may differ
        raise UserError(f"step-0 check: the hand-derived gradient of {config.loss} is off by {off:.1e} from "
                        "autograd's: one of the two in nanopref/losses.py is wrong")
