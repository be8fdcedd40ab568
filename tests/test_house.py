"""The house: imports go down its floors only, what is long has a reason, and so has a test that skips."""
import ast
from functools import cache
from pathlib import Path

pytest_plugins = "pytester"
ROOT = Path(__file__).parent.parent
# From the ground up: a floor may import from itself and from those below. Modules at the first level of nanopref, its
# rooms, and the scripts.
FLOORS = ("errors", "model sandbox text losses", "batch sample", "logps", "reward rl", "world", "data", "run", "judge",
          "train_po train_rm", "findings bench")
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
SCRIPTS = ("train_po.py", "train_rm.py")

# Files of more than MAX_FILE lines and functions of more than MAX_FUNCTION, and why.
MAX_FILE, MAX_FUNCTION = 320, 60
LONG = {"nanopref/losses.py": "twelve losses beside each other, each with its gradient and its sources"}


parsed = cache(ast.parse)


@cache
def sources() -> dict:
    """{path relative to the repository: its text} of the package and the scripts."""
    files = sorted([*(ROOT / "nanopref").rglob("*.py"), *(ROOT / name for name in SCRIPTS)])
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def place(name: str) -> str | None:
    """The room or module, as FLOOR has it, of "nanopref.run.config", "train_po" or "nanopref/run/config.py"; None for
    the package itself and for what is not of this project."""
    first, *more = name.removesuffix(".py").replace("/", ".").split(".")
    name = first if first + ".py" in SCRIPTS else more[0] if first == "nanopref" and more else None
    return None if name == "__init__" else name


def imported(code: str):
    """(line, name) of every import in it, those inside functions too. "from nanopref import reward" names
    nanopref.reward."""
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level
            elif node.module == "nanopref":
                yield from ((node.lineno, f"nanopref.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def upward(files: dict) -> list[str]:
    """The imports that go up, one line each."""
    lines = []
    for path, code in files.items():
        here = place(path)
        for line, name in imported(code):
            there = place(name)
            if name.startswith("."):
                lines.append(f"{path}:{line} is relative: say nanopref.room.module")
            elif None not in (here, there) and FLOOR[there] > FLOOR[here]:
                lines.append(f"{path}:{line} imports {name}: {here} is on floor {FLOOR[here]} ({FLOORS[FLOOR[here]]}), "
                             f"{there} on floor {FLOOR[there]} ({FLOORS[FLOOR[there]]})")
    return lines


def too_long(files: dict) -> dict:
    """{"file" or "file:function": lines} of what is over its limit. A method is Class.method."""
    lengths = {}
    for path, code in files.items():
        lengths[path] = len(code.splitlines()), MAX_FILE
        for node in ast.walk(parsed(code)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    name = f"{node.name}.{child.name}" if isinstance(node, ast.ClassDef) else child.name
                    lengths[f"{path}:{name}"] = child.end_lineno - child.lineno + 1, MAX_FUNCTION
    return {name: n for name, (n, limit) in lengths.items() if n > limit}


def test_everything_stands_on_a_floor():
    places = {place(path) for path in sources()} - {None}
    assert places == set(FLOOR), "test_house.FLOORS names every module at the first level and every room, once"


def test_imports_go_down():
    assert not upward(sources()), "\n".join(["imports that go up:", *upward(sources())])


def test_an_import_that_goes_up_is_noticed():
    """In every form that one can take, with its place; and none of those that go down."""
    planted = {"nanopref/batch.py": "import torch\n\ndef late():\n    from nanopref.run.config import ROOT\n",
               "nanopref/world/gold.py": "from nanopref import batch, judge\n",
               "nanopref/judge/look.py": "import train_po\n",
               "nanopref/run/cli.py": "from . import config\nimport nanopref.judge.stats as stats\n"}
    fine = {"nanopref/__init__.py": "", "nanopref/reward.py": "from nanopref import rl\nfrom nanopref.batch import x",
            "train_rm.py": "import train_po\nimport nanopref", "nanopref/bench/steps.py": "from train_po import step"}
    lines = upward({**planted, **fine})
    assert [line.split(": ")[0].split(" imports")[0] for line in lines] == [
        "nanopref/batch.py:4", "nanopref/world/gold.py:1", "nanopref/judge/look.py:1",
        "nanopref/run/cli.py:1 is relative", "nanopref/run/cli.py:2"]
    assert lines[0] == ("nanopref/batch.py:4 imports nanopref.run.config: batch is on floor 2 (batch sample), run on "
                        "floor 7 (run)")
    assert upward({**sources(), **planted}) and set(upward(fine)) == set()


def test_what_is_long_has_a_reason():
    long = too_long(sources())
    new = [f"{name}: {n} lines" for name, n in long.items() if name not in LONG]
    assert not new, "\n".join([f"over {MAX_FILE} lines a file, {MAX_FUNCTION} a function: split, or give a reason in "
                               "LONG", *new])
    assert not set(LONG) - set(long), f"long no more, take them out of LONG: {set(LONG) - set(long)}"


def test_what_is_too_long_is_noticed():
    body = "        pass\n"
    code = "class A:\n    def f(self):\n" + MAX_FUNCTION * body + "    def g(self):\n" + (MAX_FUNCTION - 1) * body
    assert too_long({"x.py": code}) == {"x.py:A.f": MAX_FUNCTION + 1}
    assert too_long({"x.py": "\n" * (MAX_FILE + 1), "y.py": "\n" * MAX_FILE}) == {"x.py": MAX_FILE + 1}


def test_a_skip_that_nobody_expects_fails_in_ci(pytester, monkeypatch):
    """Of a test, of a module, and of what asks for something that cannot be installed; outside of CI all may skip."""
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(
        test_one="import pytest\ndef test_a():\n    pytest.skip('has not run in this session')",
        test_two="import pytest\npytest.importorskip('no_such_module', reason='no_such_module is not installed')",
        test_three="import pytest\n@pytest.mark.skipif(True, reason='the file is not beside the repository')\n"
                   "def test_b():\n    pass")
    monkeypatch.delenv("CI", raising=False)
    pytester.runpytest_inprocess().assert_outcomes(skipped=3)
    monkeypatch.setenv("CI", "1")
    done = pytester.runpytest_inprocess("--continue-on-collection-errors")
    done.assert_outcomes(skipped=1, failed=1, errors=1)
    done.stdout.fnmatch_lines(["*test_one.py::test_a skips, which tests/conftest.py does not expect in CI*"])
