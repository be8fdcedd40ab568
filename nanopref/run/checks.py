"""The step-0 check: stop a run whose reference, precision or gradient is wrong before it costs anything."""
import math

import torch

from nanopref.batch import collate
from nanopref.errors import UserError
from nanopref.logps import by_role, sequence_logps
from nanopref.losses import LOSSES, grad_of, reduce


def step_0_check(policy, examples, config) -> None:
    """Before the first update the policy IS the reference. Prints, for the first batch,

    - the loss on the policy's log-probs beside the loss at pi = pi_ref: log 2 for DPO, and where the value depends on
      the text (SimPO, ORPO, ...) the loss on the cached log-probs of the reference, computed earlier (SFT has none);
    - the hand-derived gradient with respect to the log-probs beside autograd's.

    Raises UserError if either is off: by more than 1e-3 of its size in float32 (sums of many rounded terms in another
    order), 5e-2 in bfloat16 and tf32.
    """
    entry, device = LOSSES[config.loss], next(policy.parameters()).device
    batch = collate(examples)
    with torch.no_grad():
        logps = sequence_logps(policy, batch.to(device)).cpu().double()  # on the CPU: mps has no float64
    logps.requires_grad_()

    def loss_on(values):
        seqs = by_role(batch, values)
        out = entry.fn(*(seqs[name] for name in entry.inputs), **config.knobs)
        return seqs, reduce(out, n_tokens=seqs["w"].length.sum().item())

    tolerance = 1e-3 if config.precision == "fp32" else 5e-2
    seqs, loss = loss_on(logps)
    has_reference = not batch.ref_logps.isnan().all()
    expected = loss_on(batch.ref_logps.double())[1].item() if has_reference else loss.item()
    if not abs(loss.item() - expected) <= tolerance * (1 + abs(expected)):  # NaN is off, too
        raise UserError(f"step-0 check: loss {loss.item():.6f}, but {expected:.6f} at policy = reference: the policy "
                        "is not the model whose log-probs are cached (dropout, precision or another start?)")
    autograd = torch.autograd.grad(loss, logps)[0]
    hand = grad_of(config.loss, **{name: seqs[name] for name in entry.inputs}, **config.knobs)
    n_terms = len(seqs["w"].logp) + (len(seqs["l"].logp) if not entry.pairs else 0)
    constant = torch.zeros(len(seqs["kl"].logp), dtype=torch.float64)  # KTO's KL estimate is not trained
    by_hand = torch.cat([hand.w / n_terms + hand.nll_w / seqs["w"].length.sum(), hand.l / n_terms, constant])
    by_autograd = torch.cat([autograd[batch.roles == role] for role in (0, 1, 2)])
    off = (by_hand - by_autograd).abs().max().item()
    size = autograd.abs().max().item()
    note = " (log 2)" if math.isclose(expected, math.log(2), rel_tol=1e-6) else ""
    beside = f", at policy = reference {expected:.6f}{note}" if has_reference else ""
    print(f"step 0: loss {loss.item():.6f}{beside}; largest d loss / d logp {size:.6f}, hand-derived off by {off:.1e}")
    if not off <= 1e-9 * max(size, 1):  # both in float64: only the last digits may differ
        raise UserError(f"step-0 check: the hand-derived gradient of {config.loss} is off by {off:.1e} from "
                        "autograd's: one of the two in nanopref/losses.py is wrong")
