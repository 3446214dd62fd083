"""Layer classes: layers that no constraint tells apart, so that only counts per device and option matter."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmpq.solver.problem import Assignment, Problem, Row, Sense

Cell = tuple[int, int, int]  # class, device, option


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A row over x[layer, device] (where its coefficient is the same for every option) and counts[class, device, option]."""

    label: str
    placement: tuple[tuple[int, int, float], ...]
    counts: tuple[tuple[Cell, float], ...]
    sense: Sense
    rhs: float

    @property
    def forbids(self) -> bool:
        """Whether it says that everything it names is zero."""
        terms = [c for _, _, c in self.placement] + [c for _, c in self.counts]
        return self.sense != ">=" and self.rhs == 0 and all(c > 0 for c in terms)


@dataclass(frozen=True, slots=True)
class Classes:
    """members[class] = layers of one kind, of equal sensitivity, that every row treats alike; rows in those terms."""

    members: tuple[tuple[int, ...], ...]
    rows: tuple[ClassRow, ...]

    def sensitivity(self, problem: Problem, cell: Cell) -> float:
        return problem.sensitivity[self.members[cell[0]][0]][cell[2]]

    def kind(self, problem: Problem, number: int) -> int:
        return problem.layer_kind[self.members[number][0]]

    def cells(self, problem: Problem) -> tuple[Cell, ...]:
        """Every supported (class, device, option)."""
        return tuple(
            (number, device, option)
            for number in range(len(self.members))
            for device in range(len(problem.devices))
            for option in problem.supported(self.kind(problem, number), device)
        )

    def assignment(self, device: Iterable[int], counts: dict[Cell, int]) -> Assignment | None:
        """Layers of a class take its options on a device in order; None if the counts do not add up."""
        device = tuple(device)
        option = [0] * len(device)
        for number, layers in enumerate(self.members):
            for place in sorted(set(device)):
                here = [layer for layer in layers if device[layer] == place]
                taken = [o for (c, d, o), count in sorted(counts.items()) if (c, d) == (number, place) for _ in range(count)]
                if len(taken) != len(here):
                    return None
                for layer, chosen in zip(here, taken):
                    option[layer] = chosen
        return Assignment(device, tuple(option))


def classify(problem: Problem, rows: tuple[Row, ...], by_sensitivity: bool = True) -> Classes:
    """The coarsest classes under which the problem with these rows loses nothing.

    Layers of equal kind, sensitivity and coefficients can trade options without a change, so counts are exact.
    `by_sensitivity` False: for questions in which sensitivity plays no part.
    """
    split = [_split(problem, row) for row in rows]
    signatures: dict[object, list[int]] = {}
    for layer, kind in enumerate(problem.layer_kind):
        sensitivity = problem.sensitivity[layer] if by_sensitivity else ()
        parts = tuple(tuple(sorted(counts.get(layer, {}).items())) for _, counts in split)
        signatures.setdefault((kind, sensitivity, parts), []).append(layer)
    members = tuple(tuple(layers) for layers in signatures.values())
    return Classes(members, tuple(_class_row(row, *parts, members) for row, parts in zip(rows, split)))


Placement = dict[tuple[int, int], float]
PerLayer = dict[int, dict[tuple[int, int], float]]


def _split(problem: Problem, row: Row) -> tuple[Placement, PerLayer]:
    """Coefficients equal over all supported options of (layer, device), and the others by layer."""
    given: dict[tuple[int, int], dict[int, float]] = {}
    for layer, device, option, coefficient in row.coefficients:
        at = given.setdefault((layer, device), {})
        at[option] = at.get(option, 0.0) + coefficient
    placement: Placement = {}
    counts: PerLayer = {}
    for (layer, device), by_option in given.items():
        supported = problem.supported(problem.layer_kind[layer], device)
        values = {by_option.get(option, 0.0) for option in supported}
        if len(values) == 1:
            placement[layer, device] = values.pop()
            continue
        for option in supported:
            if by_option.get(option):
                counts.setdefault(layer, {})[device, option] = by_option[option]
    return placement, counts


def _class_row(row: Row, placement: Placement, counts: PerLayer, members: tuple[tuple[int, ...], ...]) -> ClassRow:
    cells = tuple(
        ((number, device, option), coefficient)
        for number, layers in enumerate(members)
        for (device, option), coefficient in counts.get(layers[0], {}).items()
    )
    placed = tuple((layer, device, c) for (layer, device), c in placement.items() if c)
    return ClassRow(row.label, placed, cells, row.sense, row.rhs)
