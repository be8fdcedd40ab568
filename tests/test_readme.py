"""The README is code: its commands and its Python run, and its tables are what the code prints."""
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip()]
# What makes a command small enough for a test. Everything else about it stays as printed.
SMALL = {"train_po.py": ["--rows", "64", "--prompts", "6"], "train_rm.py": ["--rows", "64"],
         "nanopref.judge.look": ["--rows", "64"], "nanopref.judge.judges": ["--rows", "6"],
         **{f"nanopref.findings.{name}": ["--seeds", "1", "--rows", "64"]
            for name in ("accuracy", "options", "overfit", "pluralism", "real_data")},
         "nanopref.findings.two_by_two": ["--seeds", "1", "--rows", "64", "--prompts", "6"],
         "nanopref.findings.best_of_n": ["--seeds", "1", "--rows", "64", "--prompts", "4", "--samples", "8"],
         "nanopref.bench": ["--rounds", "1", "--parts", "start"], "nanopref.bench.growth": ["--quick"],
         "nanopref.findings.acceptance": ["--seeds", "1", "--losses", "dpo", "--rows", "64", "--prompts", "6"]}
# A finding judges every model on 1,000 pairs a split: here on 64.
FEWER = """import runpy, sys
from nanopref.findings import common
common.N_TEST = 64
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""
HH, SMOLLM2 = "hh-rlhf-harmless-base-test.jsonl.gz", "SmolLM2-135M-Instruct"


def test_the_two_commands_at_the_top_stand_alone():
    first, second = COMMANDS[:2]
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python ")
    assert first.endswith(" train_po.py --loss simpo") and second.endswith(" -m pytest")  # .ci/run finds them so


@pytest.mark.parametrize("command", COMMANDS[2:])
def test_command_runs(command, shared_runs):
    words = shlex.split(command)
    assert words[0] == "python", f"{command}: the README shows only commands that this test can run"
    if HH in command:
        found = ROOT.parent / "shared" / "data" / HH
        if not found.exists():
            pytest.skip(f"needs {HH}, which is not part of this repository")
        words[words.index(HH)] = str(found)
        base = str(ROOT / "data" / "base")  # a model of their own takes minutes; SmolLM2 is no part of this repository
        words = [base if word in (SMOLLM2, "base") else word for word in words]
        words += [] if "--model" in words else ["--model", base]
    for name in ("simpo", "rm", "sft"):  # runs of earlier commands, whatever their fingerprint
        if f"/{name}-seed0-" in command:
            found = next((shared_runs / "world").glob(f"{name}-seed0-*"), None)
            if found is None:
                pytest.skip(f"the command that trains {name} has not run in this session")
            words = [re.sub(rf"runs/world/{name}-seed0-\w{{6}}", str(found), word) for word in words]
    small = next((small for script, small in SMALL.items() if script in words), None)
    if small and "--help" not in words:
        words += [*small, "--out", str(shared_runs)]
    if "nanopref.findings." in command:
        words[1:2] = ["-c", FEWER]
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_recipe_that_needs_a_gpu_has_valid_options():
    from nanopref.run.cli import parse, parse_rm
    block, = re.findall(r"```text\n(python .*?)```", README, re.S)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").strip().splitlines()]
    assert [command[1] for command in commands] == ["train_rm.py", "train_po.py"]
    for command in commands:
        config = (parse_rm if command[1] == "train_rm.py" else parse)(command[2:])
        assert (config.batch_size, config.epochs, config.gradient_checkpointing) == (16, 1, True)


def test_the_python_runs(shared_runs, tmp_path):
    """What serves a trained folder: it runs on the one that the commands above have left."""
    pytest.importorskip("transformers", reason="transformers is not installed; it is needed by no other code")
    block, = re.findall(r"```python\n(.*?)```", README, re.S)
    folder = next((shared_runs / "world").glob("simpo-seed0-*/model"), None)
    if folder is None:
        pytest.skip("the command that trains the policy has not run in this session")
    block, n = re.subn(r'"runs/[^"]*"', repr(str(folder)), block)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert n == 1 and done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


def test_the_table_of_losses_is_what_the_code_prints():
    from nanopref.losses import table
    rows = table().splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("sft "))
    end = rows.index("", start)
    assert "\n".join(rows[start:end]) in README


def test_every_module_is_in_the_map():
    for file in sorted((ROOT / "nanopref").glob("*.py")):
        assert file.name == "__init__.py" or f"`{file.name}`" in README or f"nanopref/{file.name}" in README, file.name


def test_linked_files_exist():
    for folder in (ROOT, ROOT / "data", ROOT / "notebooks"):
        text = (folder / "README.md").read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (folder / target).exists(), target
