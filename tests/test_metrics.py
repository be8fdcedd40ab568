"""One line of metrics.jsonl, under the field's names, worked by hand."""
import pytest
import torch

from nanopref import losses
from nanopref.losses import Seq
from nanopref.run.metrics import step_metrics

NONE = Seq(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))
# Three pairs in micro-batches of two and one. log pi, log pi_ref, tokens; D = log pi - log pi_ref.
#   chosen    -4 -6 2   -8 -7 4   -3 -3 3     D = +2, -1, 0
#   rejected  -6 -5 4   -9 -5 5   -2 -2 1     D = -1, -4, 0
PARTS = [((-4, -6, 2), (-8, -7, 4)), ((-3, -3, 3),)], [((-6, -5, 4), (-9, -5, 5)), ((-2, -2, 1),)]


def seq(rows):
    logp, ref_logp, length = zip(*rows)
    logp, ref_logp = torch.tensor(logp, dtype=torch.float64), torch.tensor(ref_logp, dtype=torch.float64)
    return Seq(logp, ref_logp, torch.tensor(length))


def metrics(loss, **knobs):
    parts = []
    for chosen, rejected in zip(*PARTS):
        seqs = {"w": seq(chosen), "l": seq(rejected), "kl": NONE}
        parts.append((seqs, loss(seqs["w"], seqs["l"], **knobs)))
    return step_metrics(parts)


def test_dpo_step_by_hand():
    """Rewards 0.1 D: chosen 0.2 -0.1 0, rejected -0.1 -0.4 0; margins 0.3 0.3 0: two right, one tie. 1e-6: shares are
    float32."""
    assert metrics(losses.dpo, beta=0.1) == pytest.approx({
        "logps/chosen": -15 / 3, "logps/rejected": -17 / 3,
        "logps_change/chosen": 1 / 3, "logps_change/rejected": -5 / 3,
        "rewards/chosen": 0.1 / 3, "rewards/rejected": -0.5 / 3, "rewards/margins": 0.6 / 3,
        "rewards/accuracies": 2 / 3, "rewards/ties": 1 / 3}, rel=0, abs=1e-6)


def test_logps_stay_sums_where_the_loss_divides():
    """SimPO, beta 2: rewards -4 -4 -2 and -3 -3.6 -4, so one pair of three is right; the logps stay the sums."""
    means = metrics(losses.simpo, beta=2.0)
    assert means["logps/chosen"] == pytest.approx(-5.0) and means["logps/rejected"] == pytest.approx(-17 / 3)
    assert means["rewards/chosen"] == pytest.approx(-10 / 3) and means["rewards/rejected"] == pytest.approx(-10.6 / 3)
    assert means["rewards/accuracies"] == pytest.approx(1 / 3) and means["rewards/ties"] == 0


def test_likelihood_per_chosen_token():
    """15 nats over 2 + 4 + 3 tokens, whatever weight the loss gives to it. Of 9 nats over 3 tokens and 1 over 1 the mean is
    10 / 4, not that of 3 and 1."""
    uneven = seq(((-9, 0, 3), (-1, 0, 1)))
    assert step_metrics([({"w": uneven, "l": NONE, "kl": NONE}, losses.sft(uneven))])["nll_loss"] == 2.5
    assert metrics(losses.cpo, alpha=0.5)["nll_loss"] == pytest.approx(15 / 9)
    parts = [({"w": seq(rows), "l": NONE, "kl": NONE}, losses.sft(seq(rows))) for rows in PARTS[0]]
    assert step_metrics(parts) == pytest.approx({"logps/chosen": -5, "logps_change/chosen": 1 / 3, "nll_loss": 15 / 9})
    assert "nll_loss" not in metrics(losses.dpo)


def test_without_a_reference_there_is_no_change_to_report():
    nan = lambda s: s._replace(ref_logp=torch.full_like(s.ref_logp, float("nan")))
    w, l = nan(seq(PARTS[0][0])), nan(seq(PARTS[1][0]))
    means = step_metrics([({"w": w, "l": l, "kl": NONE}, losses.simpo(w, l))])
    assert not [name for name in means if name.startswith("logps_change")] and means["logps/chosen"] == -6.0


def kto_metrics(w, l, kl):
    return step_metrics([({"w": w, "l": l, "kl": kl}, losses.kto(w, l, kl, beta=0.1))])


def test_kto_pairs_have_accuracies_and_unpaired_rows_have_none():
    """Each example brings one mismatched response: two for two pairs, four for two good and two bad rows, where
    comparing the first good one with the first bad one would mean nothing. kl is the mean D of (-3 -5) and (-6 -6),
    in nats, without beta."""
    w, l, kl = seq(PARTS[0][0]), seq(PARTS[1][0]), seq(((-3, -5, 2), (-6, -6, 4)))
    paired = kto_metrics(w, l, kl)
    assert paired["rewards/accuracies"] == 1.0 and paired["kl"] == pytest.approx(1.0)
    unpaired = kto_metrics(w, l, seq(((-3, -5, 2), (-6, -6, 4)) * 2))
    assert "rewards/accuracies" not in unpaired and "rewards/ties" not in unpaired
    assert unpaired["rewards/margins"] == pytest.approx(0.05 + 0.25)  # (0.2 - 0.1) / 2 and (-0.1 - 0.4) / 2


def test_a_step_with_one_label_only_has_no_nan():
    """All-bad steps happen with unpaired data; a NaN in metrics.jsonl would be no JSON."""
    means = kto_metrics(NONE, seq(PARTS[1][0]), seq(((-3, -5, 2), (-6, -6, 4))))
    assert set(means) == {"logps/rejected", "logps_change/rejected", "rewards/rejected", "kl"}
    assert all(value == value for value in means.values())
