"""The READMEs are code: their commands and their Python run, their tables are what the code prints, their links lead
somewhere, and the Chinese one says what the English one says."""
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import test_losses
from commands import run_command, start_command, starts_a_run

import train_po
import train_rm
from nanopref import losses
from nanopref.findings import common
from nanopref.run.cli import parse, parse_rm
from nanopref.world import labels

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
ROOMS = {folder.name: folder for folder in sorted((ROOT / "nanopref").iterdir()) if (folder / "__init__.py").exists()}
READMES = [ENGLISH, CHINESE, ROOT / "data" / "README.md", ROOT / "notebooks" / "README.md",
           *sorted((ROOT / "nanopref").glob("*/README.md"))]


def blocks(path, language):
    """The fenced blocks of a README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def without_comment(line):
    return re.sub(r"\s+#.*", "", line).strip()


# Every command of every README, with where it stands; the Chinese README has those of the English one.
COMMANDS = [(without_comment(line), path) for path in READMES if path != CHINESE
            for block in blocks(path, "bash") for line in block.splitlines()]
FIRST, SECOND = COMMANDS[0][0], COMMANDS[1][0]
# What makes a command small enough for a test. Everything else about it stays as printed.
SMALL = {"train_po.py": ["--rows", "64", "--prompts", "6"], "train_rm.py": ["--rows", "64"],
         "nanopref.judge.look": ["--rows", "64"], "nanopref.judge.judging": ["--rows", "6"], "nanopref.judge.compare": [],
         **{f"nanopref.findings.{name}": ["--seeds", "1", "--rows", "64"]
            for name in ("accuracy", "options", "overfit", "pluralism", "real_data")},
         "nanopref.findings.two_by_two": ["--seeds", "1", "--rows", "64", "--prompts", "6"],
         "nanopref.findings.best_of_n": ["--seeds", "1", "--rows", "64", "--prompts", "4", "--samples", "8"],
         "nanopref.findings.acceptance": ["--seeds", "1", "--losses", "dpo", "--rows", "64", "--prompts", "6"],
         "nanopref.bench": ["--rounds", "1", "--parts", "start"], "nanopref.bench.growth": ["--quick"]}
HH, SMOLLM2 = "hh-rlhf-harmless-base-test.jsonl.gz", "SmolLM2-135M-Instruct"
HH_FILE = ROOT.parent / "shared" / "data" / HH


@pytest.fixture
def small_world(monkeypatch):
    """The embedded world with few rows: to write and judge all of them takes longer than what most commands do."""
    for name, n in {"demonstrations": 100, "train": 100, "test_id": 20, "test_ood": 20}.items():
        monkeypatch.setitem(labels.SIZES, name, n)


@pytest.fixture(scope="session")
def run_of(shared_runs):
    """run_of("simpo"), run_of("rm"): the folder of that README run, made small; trained if no command has done so yet."""
    def run(name):
        out = ["--out", str(shared_runs)]
        if name == "rm":
            return train_rm.train(parse_rm([*SMALL["train_rm.py"], *out]))
        return train_po.train(parse(["--loss", name, *SMALL["train_po.py"], *out]))
    return run


# ---- commands -------------------------------------------------------------------------------------------------------

def test_the_two_commands_at_the_top_stand_alone():
    for command in (FIRST, SECOND):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python ")
    assert FIRST.endswith(" train_po.py --loss simpo") and SECOND.endswith(" -m pytest")  # .ci/run finds them so


def is_slow(command) -> bool:
    """Findings train several models each, the benchmark measures for a minute, and so it is with a real data set."""
    return "--help" not in command and any(what in command for what in ("nanopref.findings.", "nanopref.bench", HH))


@pytest.mark.parametrize("command, path", [
    pytest.param(command, path, id=f"{path.parent.name}: {command}", marks=[pytest.mark.slow] * is_slow(command))
    for command, path in COMMANDS[2:]])
def test_command_runs(command, path, run_of, shared_runs, pairs, start, monkeypatch, request):
    words = shlex.split(command)
    if not is_slow(command):  # findings start processes, which know nothing of this
        request.getfixturevalue("small_world")
    assert words[0] == "python", f"{path}: a README shows only commands that this test can run"
    if HH in words and not HH_FILE.exists():
        pytest.skip(f"needs {HH}, which is not part of this repository")
    if HH in words or "my.jsonl" in words:  # a model of the file's own takes minutes; SmolLM2 is no part of this repository
        model = str(start) if "my.jsonl" in words else str(ROOT / "data" / "base")
        words = [{HH: str(HH_FILE), "my.jsonl": str(pairs), SMOLLM2: model, "base": model}.get(word.removeprefix("HuggingFaceTB/"), word)
                 for word in words]
        words += [] if "--model" in words else ["--model", model]
        words += ["--max-length", "128"] if model == str(start) and "train_po.py" in words else []  # its whole context
    words = [re.sub(r"runs/world/(\w+)-seed0-\w{6}", lambda shown: str(run_of(shown[1])), word) for word in words]
    small = next((small for script, small in SMALL.items() if script in words), None)
    if small is not None and "--help" not in words:
        words += [*small, "--out", str(shared_runs)]
    if "nanopref.bench" in command:  # it changes threads and the allocator
        code, _, err = start_command(*words[1:])
    else:
        monkeypatch.setattr(common, "N_TEST", 64)  # a finding judges every model on 1,000 pairs a split
        code, _, err = run_command(*words[1:])
    assert code == 0, err[-2000:]


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS if "nanopref.findings." in command])
def test_a_finding_begins(command, tmp_path):
    """As far as its first run; whole, it is slow."""
    words = [str(ROOT / "data" / "base") if word == "base" else word for word in shlex.split(command)[1:]]
    if HH in words and not HH_FILE.exists():
        pytest.skip(f"needs {HH}, which is not part of this repository")
    assert "--help" in words or starts_a_run(*[str(HH_FILE) if w == HH else w for w in words], "--out", tmp_path)


def test_the_recipe_that_needs_a_gpu_has_valid_options():
    block, = [block for block in blocks(ROOT / "nanopref" / "data" / "README.md", "text") if block.startswith("python ")]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").strip().splitlines()]
    assert [command[1] for command in commands] == ["train_rm.py", "train_po.py"]
    for command in commands:
        config = (parse_rm if command[1] == "train_rm.py" else parse)(command[2:])
        assert (config.batch_size, config.epochs, config.gradient_checkpointing) == (16, 1, True)


def test_what_serves_a_trained_folder_runs(run_of, small_world):
    pytest.importorskip("transformers", reason="transformers is not installed; it is needed by no other code")
    block, = blocks(ROOT / "nanopref" / "data" / "README.md", "python")
    block, n = re.subn(r'"runs/[^"]*"', repr(str(run_of("simpo") / "model")), block)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert n == 1 and done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


# ---- a loss of one's own --------------------------------------------------------------------------------------------

@pytest.fixture
def with_slic(tmp_path, monkeypatch):
    """losses.py with the README's loss where the README says, as a module; and what test_losses.py asks a new loss for."""
    example, = blocks(ENGLISH, "python")
    lines = Path(losses.__file__).read_text().rstrip().splitlines()
    assert lines[-2].startswith("if __name__")
    path = tmp_path / "losses_with_slic.py"
    path.write_text("\n".join([*lines[:-2], example, *lines[-2:]]))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for table, line in ((test_losses.ODD_KNOBS, {"delta": 5.5, "lam": 0.3}),
                        (test_losses.AT_REFERENCE, 1.5),  # 5.5 - (-2 + 6)
                        (test_losses.FROM_REWARDS, lambda r, q, s, k: (k["delta"] - r + q).clamp(min=0))):
        monkeypatch.setitem(table, "slic", line)
    by_hand = ("slic", "A", {"delta": 3.0, "lam": 0.5}, 1.0, -4.0, -6.0, 2.0)  # 3 - (-4 + 6); 0.5 * 4
    monkeypatch.setattr(test_losses, "HAND", [*test_losses.HAND, by_hand])
    return module


@pytest.mark.parametrize("check", test_losses.CHECKS, ids=lambda check: check.__name__)
def test_the_loss_of_the_readme_passes_what_every_loss_must(check, with_slic):
    check(with_slic, "slic")


def test_the_loss_of_the_readme_is_in_the_house_style_and_trains(with_slic, monkeypatch, pairs, start, tmp_path):
    """Its docstring, signatures and registry line agree, its knobs become options, and it passes the step-0 check."""
    monkeypatch.setitem(losses.LOSSES, "slic", with_slic.LOSSES["slic"])
    test_losses.test_registry_line_docstring_and_signatures_agree("slic")
    test_losses.test_unequal_shapes_are_refused("slic")
    config = parse(["--loss", "slic", "--delta", "2", "--data", str(pairs), "--model", str(start), "--prompts", "2",
                    "--max-length", "128", "--out", str(tmp_path)])
    assert config.knobs == {"delta": 2.0, "lam": 0.1}
    assert (train_po.train(config) / "report.json").exists()


def test_what_the_readme_says_a_new_loss_is_asked_for_is_asked_for(with_slic):
    """ODD_KNOBS, AT_REFERENCE, FROM_REWARDS and a line in HAND: without one of them a check says which."""
    for check in (test_losses.check_hand_worked, test_losses.check_gradient, test_losses.check_at_reference,
                  test_losses.check_rewards):
        with pytest.MonkeyPatch.context() as patch:
            for table in (test_losses.ODD_KNOBS, test_losses.AT_REFERENCE, test_losses.FROM_REWARDS):
                patch.delitem(table, "slic")
            patch.setattr(test_losses, "HAND", test_losses.HAND[:-1])
            with pytest.raises(AssertionError, match="new loss 'slic'"):
                check(with_slic, "slic")


# ---- what the READMEs say -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_it_can_be_read_in_five_minutes(path):
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_the_table_of_losses_is_what_the_code_prints(path):
    rows = losses.table().splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("sft "))
    assert "\n".join(rows[start:rows.index("", start)]) in path.read_text()


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_the_line_counts_of_the_reading_order_are_current(path):
    rows = re.findall(r"^\| \d \| `([^`]+)` \| (\d+) \|", path.read_text(), re.M)
    assert len(rows) == 9
    for file, lines in rows:
        assert abs(len((ROOT / file).read_text().splitlines()) - int(lines)) <= 10, file


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_module_is_named_where_its_room_is_described(room):
    """And what is named is there. A room's README speaks of its own files; `world/` is described in data/README.md."""
    folder = ROOT / "nanopref" / room
    docstring = re.search(r'"""(.*?)"""', (folder / "__init__.py").read_text(), re.S)[1]
    modules = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
    listed = set(re.findall(r"^    (\w+\.py)  ", docstring, re.M))
    assert modules == listed, "the docstring of __init__.py has a line for each file"
    readme = ENGLISH if not room else folder / "README.md"
    if readme.exists():
        missing = [name for name in modules if not re.search(rf"[`/]{name}`", readme.read_text())]
        assert not missing, readme


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text()):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.M)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading


def prose(path):
    """A README without its fenced blocks and without the line in which the two link each other."""
    lines = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S).splitlines()
    return "\n".join(line for line in lines if "English" not in line or "中文" not in line)


def test_the_chinese_readme_has_the_same_code():
    """Block by block, but for the comments; and the same code, file names and links in the text."""
    english, chinese = (re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(), re.M | re.S) for path in (ENGLISH, CHINESE))
    assert [language for language, _ in english] == [language for language, _ in chinese]
    for (language, ours), (_, theirs) in zip(english, chinese):
        if language == "bash":
            ours, theirs = ([without_comment(line) for line in block.splitlines()] for block in (ours, theirs))
        assert ours == theirs
    for pattern in (r"`[^`\n]+`", r"\]\(([^)]+)\)"):
        assert Counter(re.findall(pattern, prose(ENGLISH))) == Counter(re.findall(pattern, prose(CHINESE)))


def test_the_chinese_readme_has_the_same_numbers():
    """Outside of code blocks, however wide its digits are; and as many headings and table rows. The two link each other."""
    english, chinese = (re.findall(r"\d+(?:[.,]\d+)*", unicodedata.normalize("NFKC", prose(path)))
                        for path in (ENGLISH, CHINESE))
    assert Counter(english) == Counter(chinese)
    for start in (r"# ", r"## ", r"\| "):
        english, chinese = (len(re.findall(f"^{start}", path.read_text(), re.M)) for path in (ENGLISH, CHINESE))
        assert english == chinese
    assert "](README.zh.md)" in ENGLISH.read_text() and "](README.md)" in CHINESE.read_text()
