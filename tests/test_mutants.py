"""The checks of test_losses.py must notice every planted bug, and notice it as a failed check, not as a crash."""
import inspect

import pytest

from mutants import MISPRINTS, MUTANTS, apply, misprint
from nanopref.losses import LOSSES
from test_equations import EQUATIONS
from test_losses import CHECKS, check_bandit, check_gradient, check_rewards


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


@pytest.mark.parametrize("mutant", MISPRINTS, ids=lambda m: f"E{m.equation}: {m.function}")
def test_misprint_is_noticed(mutant, monkeypatch, request):
    """By the test of the equation itself, as a failed comparison."""
    module, broken = misprint(mutant)
    monkeypatch.setattr(module, broken.__name__, broken)
    for name, entry in LOSSES.items():  # the registry holds the losses and their gradients, too
        for field in ("fn", "grad"):
            if getattr(entry, field).__name__ == broken.__name__:
                monkeypatch.setitem(LOSSES, name, entry._replace(**{field: broken}))
    test = EQUATIONS[mutant.equation].test
    with pytest.raises(AssertionError):
        test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


def test_every_equation_is_misprinted():
    assert {m.equation for m in MISPRINTS} == set(EQUATIONS)
