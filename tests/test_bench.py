"""The benchmark measures what it says: the same thing for everybody, memory and operations known by hand, processes
that are stopped, and no import that a command does not use."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanopref.bench import growth, memory, setting, start as starting
from nanopref.errors import UserError
from nanopref.logps import score
from nanopref.world import labels

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TINY = dict(num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2, vocab_size=64)
needs_linux = pytest.mark.skipif(not memory.is_measured(CPU), reason="a CPU process is measured on Linux only")


# ---- imports --------------------------------------------------------------------------------------------------------

def test_importing_a_command_imports_only_what_it_uses():
    """The model, its losses and the benchmark's setting need no tokenizer and no template; no command draws, downloads,
    or touches a peer before it has to. What `import torch` itself brings is not ours to avoid."""
    code = """if True:
        import json, sys, torch
        known = set(sys.modules)
        def added(*names):
            for name in names:
                __import__(name)
            return [name for name in sys.modules if name not in known and "." not in name]
        first = added("nanopref.losses", "nanopref.batch", "nanopref.sample", "nanopref.bench.setting")
        then = added("train_po", "train_rm", "nanopref.judge.measures", "nanopref.judge.compare", "nanopref.judge.look",
                     "nanopref.judge.judging", "nanopref.bench.__main__")
        print(json.dumps([first, then, "torch._dynamo" in set(sys.modules) - known]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, then, compiles = json.loads(done.stdout)
    assert "nanopref" in first and "jinja2" in then  # the list is one of what was imported
    assert not {"jinja2", "tokenizers"} & set(first)
    assert not {"matplotlib", "transformers", "huggingface_hub", "trl", "datasets", "pyarrow", "pandas"} & set(then)
    assert not compiles


# ---- setting --------------------------------------------------------------------------------------------------------

def test_everybody_gets_the_same_model_and_pairs():
    first, again = setting.pairs_of("S", 20), setting.pairs_of("S", 20)
    assert first == again != setting.pairs_of("S", 20, seed=1)
    for e in first:
        assert 20 <= len(e.prompt) <= 120 and len(e.responses) == 2
        for response in e.responses:
            assert 10 <= len(response) <= 200 and response[-1] == setting.EOS and min(response[:-1]) >= 3
    weights = [setting.model_of("S", **TINY).state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_reference_is_the_model_itself():
    model, examples = setting.model_of("S", vocab_size=4096, num_hidden_layers=1), setting.pairs_of("S", 3)
    assert [e.ref_logps for e in setting.with_reference(model, examples)] == score(model, examples)


def test_contenders_run_in_turn_and_the_first_round_does_not_count():
    ran = []
    contenders = {"a": lambda: time.sleep(0.02), "b": lambda: ran.append("b")}
    seconds = setting.interleaved(contenders, 2, before=lambda: ran.append("-"))
    assert ran == ["-", "b"] * 3
    assert len(seconds["a"]) == len(seconds["b"]) == 2
    assert min(seconds["a"]) >= 0.02 > min(seconds["b"])  # each is charged for what it did itself


def test_operations_by_hand():
    """(2, 3) @ (3, 4): 2 * 2 * 3 * 4 = 48; its backward two products as large. Attention of one head, 5 tokens, size 8:
    scores and sum, 2 * 5 * 5 * 8 each, though the mask hides half."""
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    assert setting.flops(lambda: a @ b) == 48
    assert setting.flops(lambda: (a @ b).sum().backward()) == 3 * 48
    q = torch.ones(1, 1, 5, 8)
    assert setting.flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)) == 2 * 400
    run, said = setting.product("meta", torch.float32)  # shapes alone: nothing is computed
    assert setting.flops(run) == said


def test_spread_and_ratio_by_hand():
    assert setting.spread([3, 1, 2]) == "2.00 [1.00, 3.00]"
    assert setting.ratio([4, 9, 2], [2, 3, 2]) == "2.00 [1.00, 3.00]"  # 2, 3, 1: of the rounds, not of the medians


# ---- memory ---------------------------------------------------------------------------------------------------------

@needs_linux
def test_a_peak_is_what_was_in_use_at_once_and_not_what_was_there_before():
    """Two blocks of 64 MB at once are 128 MB even if both are freed; a third, made and freed before, does not count.
    Within 8 MB: what else a process does in the meantime, such as its libraries' first call."""
    n, kept = 16 * 2 ** 20, torch.ones(16 * 2 ** 20)

    def run():
        one, two = torch.ones(n), torch.ones(n)
        del one, two
        torch.ones(n)

    torch.ones(n)
    for _ in range(2):
        assert memory.peak_of(run, CPU) == pytest.approx(2 * 4 * n, abs=8e6)
    assert abs(memory.peak_of(lambda: kept.add_(1), CPU)) < 8e6


def test_every_row_but_the_floor_is_the_same_step():
    """Gradients of the padded way and ours are equal to float32 rounding; without a head they are something else."""
    examples, grads = memory.pairs(3, 5, 7, 64), {}
    for what in ("padded", "ours", "no-head"):
        model = setting.model_of("S", **TINY)
        memory.backward(model, examples, what)
        grads[what] = [p.grad for name, p in model.named_parameters() if "lm_head" not in name]
    assert all((a - b).norm() < 1e-4 * b.norm() for a, b in zip(grads["ours"], grads["padded"]))
    assert any((a - b).norm() > 0.5 * b.norm() for a, b in zip(grads["no-head"], grads["padded"]))
    assert all((len(e.prompt), *map(len, e.responses)) == (5, 7, 7) for e in examples)


@needs_linux
def test_full_logits_show_in_a_row(monkeypatch, capsys):
    """16 rows of 4 + 64 tokens with a vocabulary of 20,480 are 89 MB of logits, in backward held twice. Ours holds two
    chunks of 38 MB: larger than the 32 MB up to which the C library may keep what was freed."""
    for name, value in {"VOCABULARY": 20_480, "PAIRS": 8, "PROMPT": 4, "RESPONSE": 64}.items():
        monkeypatch.setattr(memory, name, value)
    monkeypatch.setattr(memory, "model_of", lambda size, device, **changes: setting.model_of(
        size, device, **{**TINY, **changes}))
    monkeypatch.setattr("nanopref.logps.LOGITS", 9 * 2 ** 20)
    monkeypatch.setattr(memory, "pick_device", lambda name: CPU)
    megabytes = {}
    for what in ("padded", "ours"):
        memory.main([what])
        megabytes[what] = int(capsys.readouterr().out)
    assert megabytes["padded"] > 2 * 89 and 38 < megabytes["ours"] < 89


def test_the_table_asks_a_process_per_row_and_says_where_nothing_can_be_measured(monkeypatch):
    asked = []

    def run(command, **given):
        asked.append((command[-1], given["env"].get("MALLOC_MMAP_THRESHOLD_")))
        return SimpleNamespace(returncode=0, stdout=f"a library says\n{len(asked)}\n")

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    monkeypatch.setattr(memory, "is_measured", lambda device: True)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert [list(row.values())[1:] for row in memory.measure(peers=False)] == [[1, 2], [3, 4], [5, 6]]
    assert asked == [(what, limit) for what in ("padded", "ours", "no-head") for limit in (None, str(4 * 2 ** 20))]
    assert len(memory.measure(peers=True)) == 4
    monkeypatch.setattr(memory, "is_measured", lambda device: False)
    assert "not measured" in memory.measure(peers=True)[0]["memory"]
    with pytest.raises(UserError, match="Linux"):
        memory.measure_one("ours", [])


# ---- start ----------------------------------------------------------------------------------------------------------

def test_a_process_counts_until_its_first_sign_and_is_then_stopped(tmp_path):
    """It makes the file empty, as train_po.py does, fills it half a second later, and would go on for a minute."""
    code = (f"import os, time; f = open({str(tmp_path / 'sign')!r}, 'w'); open({str(tmp_path / 'pid')!r}, 'w').write("
            "str(os.getpid())); time.sleep(0.5); f.write('x'); f.flush(); time.sleep(60)")
    began = time.time()
    starting.first_sign(["-c", code], tmp_path, "sign")
    assert 0.5 < time.time() - began < 30 and not (tmp_path / "sign").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_that_fails_is_an_error_with_what_it_said(tmp_path):
    with pytest.raises(UserError, match="(?s)before its first step.*ZeroDivisionError"):
        starting.first_sign(["-c", "print('hello', flush=True); 1 / 0"], tmp_path, "sign")
    with pytest.raises(UserError, match="before its first step"):
        starting.first_sign(["-c", "pass"], tmp_path, "sign")
    starting.first_sign(["-c", "pass"])  # without a sign to wait for, its end is what is waited for


def test_what_it_trains_on_is_the_world_s_own_pairs(tmp_path):
    starting.write_pairs(tmp_path / "pairs.jsonl", "train", 20)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").open()]
    for row, pair in zip(rows, labels.pairs("train", 20, seed=0)):
        assert row["prompt"] == pair["question"] and row["chosen"] == pair[f"response_{pair['overall_response']}"]
        assert {row["chosen"], row["rejected"]} == {pair["response_1"], pair["response_2"]}
    assert len(rows) == 20


@pytest.mark.slow
def test_the_first_step_of_train_po_is_a_sign(pairs, start, tmp_path):
    """The command as it is measured, on a tiny model: the cache of the reference is left behind, the log is not."""
    starting.first_sign(["train_po.py", "--loss", "dpo", "--model", start, "--data", pairs, "--epochs", 500,
                         "--batch-size", 8, "--max-length", 64, "--device", "cpu", "--out", tmp_path],
                        tmp_path, "*/*/metrics.jsonl")
    assert list(tmp_path.glob("cache/*")) and list(tmp_path.glob("pairs/dpo-*/config.json"))
    assert not list(tmp_path.glob("pairs/*/metrics.jsonl")) and not list(tmp_path.glob("pairs/*/report.json"))


def test_the_table_times_all_in_turn(monkeypatch):
    ran = []

    def first_sign(arguments, folder=None, sign=None):
        ran.append(" ".join(map(str, arguments)))
        time.sleep(0.04 if arguments[-1] == "best" else 0.01)

    monkeypatch.setattr(starting, "first_sign", first_sign)
    rows = {row["until the first step"]: row for row in starting.measure(rounds=1, peers=True)}
    assert list(rows) == ["import torch", "import train_po", "ours", "ours, reference cached", "TRL, best",
                          "TRL, default"]
    assert rows["TRL, best"]["of TRL, best"] == "1.00 [1.00, 1.00]" and float(rows["ours"]["of TRL, best"][:4]) < 0.9
    assert len(ran) == 1 + 2 * 6 and len(set(ran)) == 6 + 1  # "ours" goes into a fresh folder every time
    assert len(starting.measure(rounds=1, peers=False)) == 4


def test_without_trl_its_side_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match="pip install trl"):
        starting.main([str(tmp_path), "pairs.jsonl", str(tmp_path / "mark"), "best"])


# ---- growth ---------------------------------------------------------------------------------------------------------

def test_each_question_varies_one_thing():
    asked = growth.questions()
    for name, points in asked.items():
        changes, lengths = zip(*points)
        varied = {key for key in ("n", "prompt", "response") if len({given[key] for given in lengths}) > 1}
        assert varied == {"response length, tokens": {"response"}, "prompt's share of a pair": {"prompt", "response"},
                          "pairs a step": {"n"}}.get(name, set())
        assert any(changes) == (not varied)
    assert {given["prompt"] + 2 * given["response"] for _, given in asked["prompt's share of a pair"]} == {growth.TOTAL}


def test_line_and_words_by_hand():
    """1 + 2 x through 0, 1 and 2, and a point that is off: least squares by hand, y = 0, 0, 3 at x = 0, 1, 2 gives
    -0.5 + 1.5 x, at most 1 off, a third of the largest."""
    assert growth.line([0, 1, 2], [1, 3, 5]) == pytest.approx((1, 2, 0), abs=1e-12)
    assert growth.line([0, 1, 2], [0, 0, 3]) == pytest.approx((-0.5, 1.5, 1 / 3))
    rows = [{"x": x, "tokens": 100 * x, "GFLOP": x * x, "MB": 5 * x, "seconds": [9, 2 * x, 0]} for x in (1, 2, 4)]
    assert growth.grown(rows) == {"seconds": 4, "tokens": 4, "GFLOP": 16, "MB": 5 * 4 / 5}
    words = growth.in_words("pairs", rows)
    assert "1 to 4 (4.0 x)" in words and "GFLOP 16.0 x" in words and "off the line by at most 0%" in words
    unmeasured = [{**row, "MB": None} for row in rows]
    assert "MB" not in growth.grown(unmeasured) and " - " in growth.table("pairs", unmeasured)


def test_it_measures_and_draws(monkeypatch, tmp_path, capsys):
    points = [(TINY, dict(n=2, prompt=6, response=k)) for k in (4, 8, 12)]
    monkeypatch.setattr(growth, "questions", lambda: {"response length, tokens": points})
    monkeypatch.setattr(growth, "whole_runs", lambda rows, threads: [{"x": n, "minutes": [n / 100]} for n in rows])
    growth.main(["--quick", "--rows", "300", "100", "200", "--device", "cpu", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.split()[:1] == ["8"])
    assert "44" in line.split()  # tokens: 2 x (6 + 2 x 8)
    assert not any(line.split()[:1] == ["12"] for line in printed.splitlines())  # quick: the two smallest points
    assert "pairs of a whole run, 100 to 200 (2.0 x): minutes 2.0 x" in printed
    assert (tmp_path / "bench" / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_whole_run_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(growth, "SHIPPED_BASE", "no/such/folder/anywhere")
    with pytest.raises(UserError, match="--rows 5 failed.*no such folder"):
        growth.whole_runs([5], threads=1)


# ---- steps ----------------------------------------------------------------------------------------------------------

def test_the_ladder_has_a_row_for_every_way_and_its_ratios_are_of_seconds(monkeypatch):
    """With a clock that adds a second more at every contender: the ratios then are whole numbers known beforehand."""
    import functools

    from nanopref.bench import steps
    usual = dict(batch=2, prompt=(3, 9), response=(4, 2, 8))
    monkeypatch.setitem(setting.SIZES, "S", (TINY, usual))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def clocked(contenders, rounds):
        for run in contenders.values():
            run()
        return {name: [1.0 + k] * rounds for k, name in enumerate(contenders)}

    monkeypatch.setattr(steps, "interleaved", clocked)
    rows = steps.measure("S", 4, 2, False, CPU)
    assert [row["step"].split(":")[0] for row in rows] == [
        "naive", "+ cached reference", "+ no padding", "+ response-only head", "+ shared prompt (train_po.py)",
        "+ compile"]
    assert rows[4]["pairs/s"] == "0.8 [0.8, 0.8]" and rows[4]["x naive"] == "0.20 [0.20, 0.20]"


def test_all_ways_train_alike():
    """A step of each, from the same weights on the same pairs, moves them to the same place but for rounding: AdamW's
    first step is lr times the gradient's sign, so that only entries near 0 may differ."""
    import contextlib
    import copy

    import train_po
    from nanopref.bench import steps
    from nanopref.run.config import RunConfig
    from nanopref.run.training import Forward, new_optimizer
    model = setting.model_of("S", **TINY)
    examples = setting.with_reference(model, memory.pairs(3, 5, 7, 64))
    moved, nothing = [], contextlib.nullcontext()
    for logps_of in (steps.padded_logps, steps.packed_logps, steps.response_only_logps, None):
        policy = copy.deepcopy(model)
        forward = Forward(logps_of or steps.sequence_logps, policy)
        optimizer = new_optimizer(policy, 1e-3)
        if logps_of:
            steps.plain_step(forward, optimizer, examples, nothing)
        else:
            train_po.step(RunConfig(loss="dpo"), forward, optimizer, examples, nothing)
        moved.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    for weights in moved[1:]:
        assert (weights - moved[0]).norm() < 0.02 * (moved[0] - start).norm()


def test_what_a_chunked_head_computes_again_is_counted(monkeypatch):
    """In chunks the logits are made again for the backward pass: one product of N x d x V more, on top of the three."""
    from nanopref.logps import ChunkedLogps
    hidden, head = torch.randn(10, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    target = torch.randint(50, (10,))
    monkeypatch.setattr("nanopref.logps.LOGITS", 150)
    counted = setting.flops(lambda: ChunkedLogps.apply(hidden, head, target).sum().backward())
    assert counted == 4 * 2 * 10 * 4 * 50
