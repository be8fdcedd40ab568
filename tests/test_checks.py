"""The step-0 check stops what it should and passes every loss; the reference's log-probs are found again."""
import contextlib
import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nanopref import losses
from nanopref.batch import CHOSEN, REJECTED, Example
from nanopref.data.examples import encode
from nanopref.data.files import Row
from nanopref.errors import UserError
from nanopref.logps import score
from nanopref.run.checkpoint import load_model
from nanopref.run.checks import step_0_check
from nanopref.run.config import SHIPPED_SFT
from nanopref.run.reference import cached_logps
from nanopref.world import labels

ROWS = [Row(({"role": "user", "content": r["question"]},), r["response_1"], r["response_2"], 1)
        for r in labels.pairs("train", 6, seed=0)]


def setting(name, tokenizer, tiny_model):
    """(policy, examples with its own log-probs as the reference's, configuration), in float32 as in training."""
    policy = tiny_model(0, torch.float32)
    examples, _ = encode(tokenizer, ROWS, losses.LOSSES[name].inputs, 128)
    examples = [replace(e, ref_logps=ref) for e, ref in zip(examples, score(policy, examples))]
    return policy, examples, SimpleNamespace(loss=name, knobs=losses.knobs(name), precision="fp32", out="runs")


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_passes_and_the_policy_is_left_alone(tokenizer, tiny_model, capsys, name):
    policy, examples, config = setting(name, tokenizer, tiny_model)
    step_0_check(policy, examples, config)
    assert ("0.693147 (log 2)" in capsys.readouterr().out) == (name in ("dpo", "robust_dpo", "ln_dpo", "dpop"))
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_policy_that_is_not_the_reference_is_refused(tokenizer, tiny_model, name):
    policy, examples, config = setting(name, tokenizer, tiny_model)
    with pytest.raises(UserError, match="step-0 check: the policy's log-probs .* --fresh run computes runs/cache"):
        step_0_check(tiny_model(1, torch.float32), examples, config)


def test_a_missing_reference_is_refused(tokenizer, tiny_model):
    """Its log-probs are NaN, and NaN compares as false with everything."""
    policy, examples, config = setting("dpo", tokenizer, tiny_model)
    with pytest.raises(UserError, match="step-0 check: the policy's log-probs .* --fresh run computes runs/cache"):
        step_0_check(policy, [replace(e, ref_logps=None) for e in examples], config)


WRONG_BY = {"the chosen by 1 nat": lambda i: 1.0 if i % 2 == 0 else 0.0, "by +1 and -1 nat": lambda i: (-1.0) ** i,
            "all by 3 nats": lambda i: 3.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", WRONG_BY)
def test_a_reference_that_is_off_is_refused(tokenizer, tiny_model, wrong, precision):
    """Also where DPO would not see it, as a shift of all cancels, and in bf16 as on a GPU."""
    policy, examples, config = setting("dpo", tokenizer, tiny_model)
    config.precision = precision
    moved = [replace(e, ref_logps=[ref + WRONG_BY[wrong](i) for i, ref in enumerate(e.ref_logps)]) for e in examples]
    step_0_check(policy, examples, config)
    with pytest.raises(UserError, match="step-0 check: the policy's log-probs"):
        step_0_check(policy, moved, config)


def test_a_long_response_may_not_be_far_off(tokenizer, tiny_model):
    """Rounding adds up with the root of the length: 1 nat in 110 tokens is not rounding, in bf16 either."""
    policy, _, config = setting("dpo", tokenizer, tiny_model)
    ids = torch.randint(5, 300, (2, 110), generator=torch.Generator().manual_seed(0)).tolist()
    long = [Example([1, 2], ids, [CHOSEN, REJECTED])]
    scores, config.precision = score(policy, long)[0], "bf16"
    step_0_check(policy, [replace(long[0], ref_logps=scores)], config)
    with pytest.raises(UserError, match="step-0 check: the policy's log-probs"):
        step_0_check(policy, [replace(long[0], ref_logps=[score + 1 for score in scores])], config)


@pytest.mark.parametrize("name", [name for name, entry in losses.LOSSES.items() if entry.reference])
def test_a_loss_and_a_gradient_that_both_forget_the_reference_are_refused(tokenizer, tiny_model, monkeypatch, name):
    policy, examples, config = setting(name, tokenizer, tiny_model)
    entry, bare = losses.LOSSES[name], lambda seqs: [s._replace(ref_logp=0 * s.ref_logp) for s in seqs]
    forgetful = entry._replace(fn=functools.wraps(entry.fn)(lambda *seqs, **knobs: entry.fn(*bare(seqs), **knobs)),
                               grad=lambda *seqs, **knobs: entry.grad(*bare(seqs), **knobs))
    monkeypatch.setitem(losses.LOSSES, name, forgetful)
    with pytest.raises(UserError, match="must not know the difference"):
        step_0_check(policy, examples, config)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_another_packing_in_bf16_passes(batch_size):
    """What rounding does between the batches that the reference was scored in and the first of training."""
    policy, tokenizer = load_model(SHIPPED_SFT, dtype=torch.float32)
    rows = [Row(({"role": "user", "content": r["question"]},), r["response_1"], r["response_2"], 1)
            for r in labels.pairs("train", 48, seed=0)]
    examples, _ = encode(tokenizer, rows, ("w", "l"), 512)
    config = SimpleNamespace(loss="dpo", knobs=losses.knobs("dpo"), precision="bf16", out="runs")
    with torch.autocast("cpu", torch.bfloat16):
        examples = [replace(e, ref_logps=ref) for e, ref in zip(examples, score(policy, examples))]
        step_0_check(policy, examples[:batch_size], config)


@pytest.mark.parametrize("name, side", [(name, side) for name, entry in losses.LOSSES.items()
                                        for side in entry.inputs if side != "kl"])
def test_a_wrong_hand_gradient_is_refused(tokenizer, tiny_model, monkeypatch, name, side):
    """Wrong by one part in a million on one side."""
    policy, examples, config = setting(name, tokenizer, tiny_model)
    entry = losses.LOSSES[name]

    def wrong(*seqs, **knobs):
        grad = entry.grad(*seqs, **knobs)
        if name == "sft":
            return grad._replace(nll_w=grad.nll_w * (1 + 1e-6))
        return grad._replace(**{side: getattr(grad, side) * (1 + 1e-6)})

    monkeypatch.setitem(losses.LOSSES, name, entry._replace(grad=wrong))
    with pytest.raises(UserError, match=f"gradient of {name} is off"):
        step_0_check(policy, examples, config)


def test_a_gradient_through_the_kl_estimate_is_refused(tokenizer, tiny_model, monkeypatch):
    """KTO's z0 is a constant; trained through, the mismatched responses would move. Clamped at 0 it has no slope at
    policy = reference, so the planted loss leaves the clamp out."""
    def kto(w, l, kl, *, beta, desirable_weight, undesirable_weight):
        out = losses.kto(w, l, kl, beta=beta)
        return out._replace(loss=out.loss + 1e-6 * kl.log_ratio.mean())

    policy, examples, config = setting("kto", tokenizer, tiny_model)
    monkeypatch.setitem(losses.LOSSES, "kto", losses.LOSSES["kto"]._replace(fn=kto))
    with pytest.raises(UserError, match="gradient of kto is off"):
        step_0_check(policy, examples, config)


# ---- the reference's log-probs --------------------------------------------------------------------------------------

@pytest.fixture
def cached(tokenizer, tiny_model, tmp_path):
    """cached(reference, examples): the log-probs by way of a cache folder, from a start folder with some weights."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")

    def call(reference, examples, fresh=False, precision="fp32"):
        scored = cached_logps(tmp_path, reference, examples, tmp_path / "cache", contextlib.nullcontext(), precision,
                              fresh)
        return [e.ref_logps for e in scored]

    call.files = lambda: sorted((tmp_path / "cache").glob("*"))
    call.weights = tmp_path / "model.safetensors"
    call.model = tiny_model(0, torch.float32)
    call.examples, _ = encode(tokenizer, ROWS, ("w", "l"), 128)
    return call


def test_a_second_call_reads_the_same_numbers_from_the_file(cached, capsys):
    """It is given no reference model, so it cannot have computed them."""
    first = cached(cached.model, cached.examples)
    assert first == score(cached.model, cached.examples)
    assert cached(None, cached.examples) == first and len(cached.files()) == 1
    assert "reusing" in capsys.readouterr().out
    with pytest.raises(AttributeError):
        cached(None, cached.examples, fresh=True)  # fresh computes in any case


def test_other_tokens_weights_or_precision_are_another_file(cached):
    cached(cached.model, cached.examples)
    e = cached.examples[0]
    for changed in (replace(e, prompt=[*e.prompt[:-1], 5]), replace(e, responses=[e.responses[0], e.responses[1][1:]])):
        cached(cached.model, [changed, *cached.examples[1:]])
    assert len(cached.files()) == 3
    cached.weights.write_bytes(b"other weights")
    cached(cached.model, cached.examples)
    assert len(cached.files()) == 4
    cached(cached.model, cached.examples, precision="bf16")
    assert len(cached.files()) == 5


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "other content", "cut off"])
def test_a_damaged_file_is_computed_again(cached, capsys, damage):
    first, = [cached(cached.model, cached.examples)]
    path, = cached.files()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert cached(cached.model, cached.examples) == first
    assert "damaged" in capsys.readouterr().out
    assert sum(load_file(path)["ref_logps"].tolist()) == pytest.approx(sum(sum(first, [])))
