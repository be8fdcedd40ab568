"""Tells a reader of the notebooks whether an exercise is solved."""
import torch


def check(name: str, answer, expected, tolerance: float = 1e-6) -> None:
    """Prints whether `answer` (a number or tensor) is `expected` within `tolerance`; `...`: not answered yet."""
    if answer is ...:
        print(f"{name}: not answered yet")
        return
    try:
        answer, expected = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (answer, expected))
    except (TypeError, ValueError, RuntimeError):
        print(f"{name}: not yet, expected a number or a tensor, got {type(answer).__name__} (is the `return` there?)")
        return
    if answer.shape != expected.shape:
        print(f"{name}: not yet, expected shape {tuple(expected.shape)}, got {tuple(answer.shape)}")
        return
    off = (answer - expected).abs().max().item()  # NaN is not right
    print(f"{name}: right" if off <= tolerance else f"{name}: not yet, off by {off:.3g}")
