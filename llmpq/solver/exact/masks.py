"""Masks: the cells [layer, device, option] that are left by unsupported precisions and by rows that say no more than that."""

from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.problem import RELATIVE_TOLERANCE, Problem, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray


def split_rows(problem: Problem, rows: tuple[Row, ...]) -> tuple["NDArray[np.uint8]", tuple[Row, ...]]:
    """1 where a cell is allowed, and the rows that no mask expresses."""
    supported = [[[cell is not None for cell in device] for device in problem.layer_bytes[kind]] for kind in problem.layer_kind]
    allowed = np.array(supported, np.uint8)
    rest = []
    for row in rows:
        if _forbids(row):
            for layer, device, option, _ in row.coefficients:
                allowed[layer, device, option] = 0
        elif len({layer for layer, _, _, _ in row.coefficients}) == 1:
            layer = row.coefficients[0][0]
            allowed[layer] &= _holds(row, allowed[layer])
        else:
            rest.append(row)
    return allowed, tuple(rest)


def _forbids(row: Row) -> bool:
    """Whether it says that everything it names is zero."""
    return row.sense != ">=" and row.rhs == 0 and all(c > RELATIVE_TOLERANCE for *_, c in row.coefficients)


def _holds(row: Row, cells: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """1 where the row of a single layer holds, by device and option."""
    value = np.zeros(cells.shape)
    for _, device, option, coefficient in row.coefficients:
        value[device, option] += coefficient
    difference, slack = value - row.rhs, RELATIVE_TOLERANCE * max(1.0, abs(row.rhs))
    above, below = difference >= -slack, difference <= slack
    return (above if row.sense == ">=" else below if row.sense == "<=" else above & below).astype(np.uint8)
