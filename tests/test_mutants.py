"""The checks of test_losses.py must notice every planted bug, and notice it as a failed check, not as a crash."""
import inspect
import sys

import mutants_project
import pytest
from mutants import MISPRINTS, MUTANTS, apply, misprint
from mutants_project import BUGS, ROOT
from test_equations import EQUATIONS, place_of
from test_losses import CHECKS, check_bandit, check_gradient, check_rewards

from nanopref.losses import LOSSES


def notices(check, module, name) -> bool:
    try:
        check(module, name)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.loss}: {m.name}")
def test_mutant_is_killed(mutant):
    module = apply(mutant)  # raises unless the replaced text occurs exactly once
    assert any(notices(check, module, mutant.loss) for check in CHECKS)


def test_every_loss_is_mutated():
    assert {m.loss for m in MUTANTS} == set(LOSSES)


def test_gradient_and_rewards_catch_the_seven_classics_and_learning_only_one():
    """"It learns" is what most test suites ask. Six of the seven bugs learn well enough to pass a bandit."""
    modules = [apply(m) for m in MUTANTS[:7]]
    assert all(notices(check_gradient, m, "dpo") or notices(check_rewards, m, "dpo") for m in modules)
    assert [notices(check_bandit, m, "dpo") for m in modules] == [True] + [False] * 6


def put_in_place_of(monkeypatch, function, other):
    """Wherever a module or the registry of losses holds `function`."""
    for module in [m for name, m in sys.modules.items() if name.startswith(("nanopref", "test_"))]:
        for name, value in list(vars(module).items()):
            if value is function:
                monkeypatch.setattr(module, name, other)
    for name, entry in LOSSES.items():
        for field in ("fn", "grad"):
            if getattr(entry, field) is function:
                monkeypatch.setitem(LOSSES, name, LOSSES[name]._replace(**{field: other}))


def run_test_of(number, request):
    test = EQUATIONS[number].test
    test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("mutant", MISPRINTS, ids=lambda m: f"E{m.equation}: {m.function}")
def test_misprint_is_noticed(mutant, monkeypatch, request):
    """By the test of the equation itself, as a failed comparison."""
    put_in_place_of(monkeypatch, *misprint(mutant))
    with pytest.raises(AssertionError):
        run_test_of(mutant.equation, request)


class Reached(Exception):
    pass


@pytest.mark.parametrize("number, name", [(n, name) for n, e in EQUATIONS.items() for name in e.code.split()])
def test_the_test_of_an_equation_reaches_the_code_it_names(number, name, monkeypatch, request):
    def stop(*args, **kwargs):
        raise Reached
    owner, attribute = place_of(name)
    put_in_place_of(monkeypatch, getattr(owner, attribute), stop)
    monkeypatch.setattr(owner, attribute, stop)  # a class is no module
    with pytest.raises(Reached):
        run_test_of(number, request)


def test_every_equation_is_misprinted():
    assert {m.equation for m in MISPRINTS} == set(EQUATIONS)


def test_the_bugs_of_the_whole_project_can_be_planted():
    """`python tests/mutants_project.py` tries them; here each is one place in its file, and still Python."""
    for bug in BUGS:
        whole = (ROOT / bug.file).read_text()
        assert whole.count(bug.old) == 1, bug
        compile(whole.replace(bug.old, bug.new), bug.file, "exec")
        assert mutants_project.tests_of(bug.file), bug.file
