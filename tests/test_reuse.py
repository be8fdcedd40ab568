"""An edit is an edit: what must be done again after a change in the code, and what must not."""
import ast
import linecache
import re
import runpy
import shutil
import subprocess
import sys

import pytest

import train_po
import train_rm
from nanopref.errors import UserError
from nanopref.run import reuse, source
from nanopref.run.checkpoint import WEIGHTS
from nanopref.run.config import ROOT, SHIPPED_SFT, RunConfig
from nanopref.run.source import SOURCES, code_of

# Things that are made once and found again, and the code each is made by.
MADE = {"base": lambda: reuse.training_code(RunConfig(loss="sft", model="scratch")),
        "sft": lambda: reuse.training_code(RunConfig(loss="sft")),
        **{loss: lambda loss=loss: reuse.training_code(RunConfig(loss=loss)) for loss in ("dpo", "orpo", "kto")},
        "file": lambda: reuse.training_code(RunConfig(loss="dpo", data="my.jsonl")),
        "rm": lambda: reuse.training_code(RunConfig(loss="rm")),
        "rm length": lambda: reuse.training_code(RunConfig(loss="rm", knobs={"length_penalty": 0.1})),
        "reference": lambda: code_of("nanopref.logps.score", "nanopref.run.checkpoint.load_model"),
        "report": lambda: reuse.report_code(RunConfig(loss="dpo")),
        "rm report": lambda: reuse.report_code(RunConfig(loss="rm"))}
RM = "rm, rm length"
POLICIES = "base, sft, dpo, orpo, kto, file"
LABELS = f"dpo, orpo, kto, {RM}, report, rm report"  # what sees the world's preferences

EDITS = [  # module, old (once in it), new; what must be made again, all of it and nothing else
    ("losses", "out.loss.sum() / (n_pairs or len(out.loss))", "out.loss.mean()", POLICIES),
    ("losses", "return x - torch.log(-torch.expm1(x))", "return x", "orpo"),
    ("losses", "return self.logp - self.ref_logp", "return self.logp", f"{POLICIES}, report"),
    ("losses", "    z = r_w - r_l\n    loss = -(1 -", "    z = r_l - r_w\n    loss = -(1 -", "dpo, file"),
    ("losses", "z0 = kl.log_ratio.mean()", "z0 = kl.logp.mean()", "kto"),  # its gradient: the step-0 check must see it
    ("losses", "z0 = beta * kl.log_ratio.mean().clamp(min=0).detach()", "z0 = 0", "kto"),
    ("losses", '"""D = log pi - log pi_ref, (B,) nats."""', '"""The log-ratio."""', ""),
    ("model", "dtype) / config.head_dim", "dtype) / 2", f"{POLICIES}, {RM}, reference, report"),
    ("model", "F.silu(", "F.gelu(", f"{POLICIES}, {RM}, reference, report"),
    ("logps", "batch.place - 1)", "batch.place)", f"{POLICIES}, reference, report, rm report"),
    ("logps", "def padded_logps(model, examples)", "def padded_logps(model, examples, x=0)", ""),
    ("batch", 'random.Random(f"{seed}-{epoch}")', 'random.Random(f"{seed}")', f"{POLICIES}, {RM}"),
    ("text", "add_special_tokens=False).ids + [tokenizer.eos_id]", "add_special_tokens=False).ids",
     f"{POLICIES}, {RM}, report"),
    ("data.examples", '("w", CHOSEN, row.chosen)', '("w", CHOSEN, row.rejected)',
     f"sft, dpo, orpo, kto, file, {RM}, report"),
    ("data.examples", "times, rest = divmod(half, len(side))", "times, rest = 1, 0", ""),
    ("train_po", "grad_norm = torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)",
     "grad_norm = torch.nn.utils.clip_grad_norm_(forward.parameters(), 1e9)", POLICIES),
    ("train_po", "    optimizer.step()\n", "", POLICIES),
    ("train_rm", "    optimizer.step()\n", "", RM),
    ("run.training", "betas=(0.9, 0.99)", "betas=(0.9, 0.999)", f"{POLICIES}, {RM}"),
    ("run.training", "0.1 * steps", "0.2 * steps", f"{POLICIES}, {RM}"),
    ("run.reference", 'load_file(path)["ref_logps"].tolist()', "[0.0]", "dpo, orpo, kto, file"),
    ("run.checks", "off <= 1e-9", "off <= 1e9", ""),
    ("run.cli", "peak learning rate", "the learning rate", ""),
    ("run.config", "num_hidden_layers=4", "num_hidden_layers=5", "base"),
    ("run.dataset", "TEST_FRACTION = 0.1", "TEST_FRACTION = 0.2", "file, report, rm report"),
    ("sample", "2 * len(running) <= len(rows)", "len(running) <= len(rows)", "report"),
    ("judge.measures", "TEMPERATURE, TOP_P = 256, 0.7", "TEMPERATURE, TOP_P = 256, 1.0", "report"),
    ("judge.plots", "figsize=(4.6", "figsize=(4.7", "report"),
    ("judge.plots_rm", "figsize=(", "figsize=(1 + ", "rm report"),
    ("reward", "reward - lam * (length - target).abs()", "reward - lam * (length - target)", f"{RM}, rm report"),
    ("reward", "hidden[batch.last]", "hidden[batch.last - 1]", f"{RM}, rm report"),
    ("world.labels", "TEMPERATURE = 1.0", "TEMPERATURE = 2.0", LABELS),
    ("world.gold", "OVER_REFUSED = -1.5", "OVER_REFUSED = -1.0", LABELS),
    ("world.writers", '"plain"', '"plane"', f"sft, {LABELS}"),
    ("world.language", 'str(a) for a in range(10)', 'str(a + 1) for a in range(10)', f"base, sft, {LABELS}"),
    ("losses", "def knobs(name: str)", 'LOSSES["mine"] = Loss(dpo, d_ipo, True, True)\n\n\ndef knobs(name: str)', ""),
    ("world.exact", "MAX_LENGTH = 4", "MAX_LENGTH = 5", ""),
]


def remade(before) -> str:
    return ", ".join(name for name, code in MADE.items() if code() != before[name])


@pytest.fixture(scope="module")
def before():
    return {name: code() for name, code in MADE.items()}


@pytest.mark.parametrize("module, old, new, wanted", EDITS, ids=lambda value: value[:20])
def test_an_edit_makes_again_what_it_can_matter_to(module, old, new, wanted, before, monkeypatch):
    module = module if module.startswith("train_") else f"nanopref.{module}"
    assert SOURCES[module].count(old) == 1
    monkeypatch.setitem(SOURCES, module, SOURCES[module].replace(old, new))
    assert set(remade(before).split(", ")) == set(wanted.split(", "))


def test_comments_layout_and_docstrings_make_nothing_again(before, monkeypatch):
    """Every module as Python itself would write it, with another docstring."""
    for module, code in SOURCES.items():
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and source.is_docstring(node.body[0]):
                node.body[0].value.value = "Something else."
        monkeypatch.setitem(SOURCES, module, "# a comment\n" + ast.unparse(tree))
        assert SOURCES[module] != code
    assert not remade(before)


def test_the_facts_of_the_world_are_code_too(before, monkeypatch):
    monkeypatch.setitem(reuse.TABLES, "one more", {})
    assert remade(before) == f"base, sft, dpo, orpo, kto, {RM}"


# ---- what a user sees -----------------------------------------------------------------------------------------------

def run(pairs, start, out, capsys, **settings):
    """(folder of the run, what it printed)"""
    settings = dict(loss="dpo", data=str(pairs), model=str(start), epochs=1, batch_size=8, max_length=64, prompts=2,
                    device="cpu", out=str(out)) | settings
    folder = (train_rm if settings["loss"] == "rm" else train_po).train(RunConfig(**settings))
    return folder, capsys.readouterr().out


def edit(monkeypatch, module, old, new):
    assert SOURCES[module].count(old) == 1
    monkeypatch.setitem(SOURCES, module, SOURCES[module].replace(old, new))


@pytest.mark.parametrize("loss", ["dpo", "rm"])
def test_after_an_edit_a_run_is_another_run_and_says_why(loss, pairs, start, tmp_path, capsys, monkeypatch, no_figure):
    first, _ = run(pairs, start, tmp_path, capsys, loss=loss)
    edit(monkeypatch, "nanopref.run.training", "betas=(0.9, 0.99)", "betas=(0.9, 0.999)")
    second, printed = run(pairs, start, tmp_path, capsys, loss=loss)
    assert second != first and (first / "report.json").exists()
    assert f"{first} has these settings, but another version of nanopref/run/training.py made it" in printed
    again, printed = run(pairs, start, tmp_path, capsys, loss=loss)
    assert again == second and "done already" in printed


@pytest.mark.parametrize("loss, module", [("dpo", "nanopref.judge.report"), ("rm", "nanopref.judge.report_rm")])
def test_after_an_edit_of_the_report_only_that_is_made_again(loss, module, pairs, start, tmp_path, capsys, monkeypatch,
                                                             no_figure):
    first, _ = run(pairs, start, tmp_path, capsys, loss=loss)
    weights, log = ((first / name).read_bytes() for name in ("model/model.safetensors", "metrics.jsonl"))
    monkeypatch.setitem(SOURCES, module, SOURCES[module].replace("What happened", "What we see"))
    second, printed = run(pairs, start, tmp_path, capsys, loss=loss)
    assert second == first and f"another version of {module.replace('.', '/')}.py made it" in printed
    assert re.search(r"resuming at step (\d+) of \1\n", printed)
    assert "done already" in run(pairs, start, tmp_path, capsys, loss=loss)[1]
    assert [(first / name).read_bytes() for name in ("model/model.safetensors", "metrics.jsonl")] == [weights, log]


def test_resume_does_not_go_on_with_other_code(pairs, start, tmp_path, capsys, monkeypatch, no_figure):
    folder, _ = run(pairs, start, tmp_path, capsys)
    (folder / "model").rename(folder / "checkpoint")
    (folder / "report.json").unlink()
    edit(monkeypatch, "train_po", "    optimizer.step()\n", "")
    with pytest.raises(UserError, match="was interrupted, but another version of train_po.py made it: undo"):
        run(pairs, start, tmp_path, capsys, resume=True)


def test_the_reference_is_computed_again_after_an_edit(pairs, start, tmp_path, capsys, monkeypatch, no_figure):
    run(pairs, start, tmp_path, capsys)
    assert "reference log-probs: reusing" in run(pairs, start, tmp_path, capsys, loss="ipo")[1]
    edit(monkeypatch, "nanopref.model", "F.silu(", "F.gelu(")
    assert "reference log-probs: reusing" not in run(pairs, start, tmp_path, capsys)[1]


def test_a_shipped_model_of_other_code_says_so(monkeypatch):
    code = dict(reversed(line.split()) for line in (SHIPPED_SFT / "code.txt").read_text().splitlines())
    monkeypatch.setattr(reuse, "training_code", lambda config: code)
    assert reuse.about_shipped(RunConfig(loss="dpo")) == "sft model: the one shipped in data/sft"
    code = {**code, "nanopref/model.py": "changed"}
    assert reuse.about_shipped(RunConfig(loss="dpo")) == (
        "sft model: the one shipped in data/sft; another version of nanopref/model.py made it, --fresh sft trains it "
        "with yours")


def test_strict_decides(pairs):
    configs = [RunConfig(loss="dpo", data=str(pairs), precision="fp32", strict=strict) for strict in (False, True)]
    assert len({reuse.run_folder(config, None) for config in configs}) == 2


def test_a_run_without_its_model_or_with_half_a_file_is_not_done(pairs, start, tmp_path, capsys, no_figure):
    folder, _ = run(pairs, start, tmp_path, capsys)
    for name in ("config.json", "report.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(whole[:len(whole) // 2])
        assert "done already" not in run(pairs, start, tmp_path, capsys)[1]
        assert (folder / name).read_text() == whole
    (folder / "model").rename(folder / "moved")
    assert "done already" not in run(pairs, start, tmp_path, capsys)[1]
    assert (folder / "model" / WEIGHTS).read_bytes() == (folder / "moved" / WEIGHTS).read_bytes()


def test_a_loss_from_elsewhere_is_known_by_its_source(tmp_path, monkeypatch):
    """As one that a notebook defines, with a helper of its own."""
    def loss_of(helper):
        (tmp_path / "cell.py").write_text(f"def helper(x):\n    return {helper}\n\n\ndef mine(w, l, *, beta=0.1):\n"
                                          "    return helper(w)\n")
        linecache.clearcache()
        return runpy.run_path(str(tmp_path / "cell.py"), run_name="cell")["mine"]

    first, same, other = (code_of(loss_of(helper)) for helper in ("x", "x", "-x"))
    assert first == same != other and list(first) == ["cell"]


def test_in_a_session_an_edited_file_is_refused(monkeypatch):
    """The kernel of a notebook runs what it has imported, whatever the file says now."""
    monkeypatch.setitem(SOURCES, "nanopref.losses", SOURCES["nanopref.losses"] + "# older")
    code_of("nanopref.losses.dpo")
    monkeypatch.setattr(sys, "ps1", ">>>", raising=False)
    with pytest.raises(UserError, match="nanopref/losses.py was edited .* restart"):
        code_of("nanopref.losses.dpo")


@pytest.mark.slow
def test_an_edit_of_a_file_is_seen_by_the_command(pairs, start, tmp_path):
    """In a copy of the project, whose DPO gets its sign reversed."""
    for name in ("nanopref", "train_po.py", "train_rm.py", "data"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    command = [sys.executable, "train_po.py", "--loss", "dpo", "--data", str(pairs), "--model", str(start),
               "--batch-size", "8", "--max-length", "64", "--prompts", "2", "--device", "cpu"]
    printed = lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    printed()
    assert "done already" in printed()
    losses = tmp_path / "nanopref" / "losses.py"
    losses.write_text(losses.read_text().replace("    z = r_w - r_l\n    loss = -(1 -", "    z = r_l - r_w\n    loss = -(1 -"))
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "another version of nanopref/losses.py made it" in stopped.stdout
    assert "hand-derived gradient of dpo is off" in stopped.stderr  # the step-0 check
