"""What one line of metrics.jsonl holds, under the names the field uses."""
import torch

TIE = 1e-4  # margins that float32 may make of 0: at step 0, where policy and reference differ by some 1e-5 nats


@torch.no_grad()
def step_metrics(parts) -> dict:
    """Means over one optimiser step. `parts` is a list of (seqs, out), one per micro-batch, seqs a dict of w, l, kl.

    logps/chosen, logps/rejected: nats, SUMMED over a response, mean over responses, whatever the loss divides by.
    logps_change/...: the same minus the reference's, so the two curves start at 0 (absent without a reference).
    rewards/...: the loss's implicit rewards, beta included; margins = chosen - rejected; accuracies: the share of pairs
    with a margin above TIE; ties, within it, count as wrong and are reported as rewards/ties: of a policy that is its
    reference all are (in bf16 its margins are not so small, and the first step tells nothing). Unpaired data has none.
    nll_loss: nats per chosen TOKEN. kl: KTO's z0 / beta before it is cut at 0, nats.
    """
    joined = lambda name, get: torch.cat([get(seqs[name]) for seqs, _ in parts])
    means = {}
    for name, role in (("w", "chosen"), ("l", "rejected")):
        logps = joined(name, lambda s: s.logp)
        if len(logps):
            means[f"logps/{role}"] = logps.mean().item()
            change = (logps - joined(name, lambda s: s.ref_logp)).mean().item()
            if change == change:  # not NaN: there is a reference
                means[f"logps_change/{role}"] = change
    w, l = (torch.cat([getattr(out, f"{role}_rewards") for _, out in parts]) for role in ("chosen", "rejected"))
    if len(w):
        means["rewards/chosen"] = w.mean().item()
    if len(l):
        means["rewards/rejected"] = l.mean().item()
    if len(w) and len(l):
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    n_mismatched = len(joined("kl", lambda s: s.length))  # KTO has one per example: as many only if all are pairs
    if len(w) == len(l) > 0 and n_mismatched in (0, len(w)):
        means["rewards/accuracies"] = (w - l > TIE).float().mean().item()
        means["rewards/ties"] = ((w - l).abs() <= TIE).float().mean().item()
    if any(out.nll is not None for _, out in parts):
        lengths = joined("w", lambda s: s.length)
        means["nll_loss"] = (-joined("w", lambda s: s.logp).sum() / lengths.sum()).item()
    kl = joined("kl", lambda s: s.logp - s.ref_logp)
    if len(kl):
        means["kl"] = kl.mean().item()
    return means
