"""How every table is printed: rows of cells under column heads, aligned. And how an uncertain number stands in one."""
from itertools import chain, repeat


def aligned(rows, *columns) -> str:
    """Rows of cells, the first of them usually the heads, as lines of text. Cells are shown by str(); a row may be
    shorter than others.

    columns: where each cell stands, "<20" on the left of 20 characters, ">8" on the right of 8, "<" as it is; the last
    one serves all columns that follow. Without any, columns are as wide as their widest cell, the first on the left,
    the others two spaces apart on the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not columns:
        first, *others = (max(map(len, column)) for column in zip(*rows))
        columns = f"<{first}", *(f">{width + 2}" for width in others)
    places = lambda: chain(columns, repeat(columns[-1]))
    return "\n".join("".join(f"{cell:{place}}" for cell, place in zip(row, places())) for row in rows)


def plus_minus(estimate, digits=2, sign="") -> str:
    """[value, error] as 0.56 ± 0.02; with "+" as sign a value above 0 shows its own; an unknown error is a "?"."""
    value, error = estimate
    return f"{value:{sign}.{digits}f} ± " + ("?" if error is None else f"{error:.{digits}f}")


def interval(share) -> str:
    """(share, low, high) of stats.share as 0.56 [0.55, 0.57]."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*share)
