"""Tells a reader of the notebooks whether an exercise is solved."""
import torch


def check(name: str, answer, expected, tolerance: float = 1e-6) -> None:
    """Prints whether `answer` (a number or tensor) is `expected` to within `tolerance`; `...` is an exercise not begun."""
    if answer is ...:
        print(f"{name}: not answered yet")
        return
    answer, expected = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (answer, expected))
    if answer.shape != expected.shape:
        print(f"{name}: not yet, expected shape {tuple(expected.shape)}, got {tuple(answer.shape)}")
        return
    off = (answer - expected).abs().max().item()
    print(f"{name}: right" if off <= tolerance else f"{name}: not yet, off by {off:.3g}")
