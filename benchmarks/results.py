"""What a run yields: values by quantity, contestant and size, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """Something that is measured. ``sized`` names what its size counts."""

    key: str
    title: str
    unit: str
    sized: str


@dataclass(frozen=True)
class Place:
    """Where a value stands: one contestant's, with so many processes."""

    quantity: Quantity
    contestant: str
    size: int


@dataclass
class Results:
    """Values in the order in which they were measured."""

    values: dict[Place, list[float]] = field(default_factory=dict)
    remarks: dict[tuple[str, int, str], str] = field(default_factory=dict)
    """Why something has no value: by contestant, size and what its size counts."""

    def add(self, quantity: Quantity, contestant: str, size: int, *values: float) -> None:
        self.values.setdefault(Place(quantity, contestant, size), []).extend(values)

    def of(self, quantity: Quantity, contestant: str, size: int) -> list[float]:
        return self.values.get(Place(quantity, contestant, size), [])

    def quantities(self) -> list[Quantity]:
        return list(dict.fromkeys(place.quantity for place in self.values))

    def sizes(self, quantity: Quantity) -> list[int]:
        return sorted({place.size for place in self.values if place.quantity == quantity})

    def contestants(self, quantity: Quantity) -> list[str]:
        found = (place.contestant for place in self.values if place.quantity == quantity)
        return list(dict.fromkeys(found))

    def as_json(self) -> list[dict[str, Any]]:
        return [_as_json(place, values) for place, values in self.values.items()]


def _as_json(place: Place, values: Sequence[float]) -> dict[str, Any]:
    quantity = place.quantity
    return {
        "quantity": quantity.key,
        "contestant": place.contestant,
        quantity.sized: place.size,
        "unit": quantity.unit,
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "values": [round(value, 4) for value in values],
    }


def ratios(ones: Sequence[float], others: Sequence[float]) -> Iterator[float]:
    """Pair by pair if there are as many of each, or else of the medians.

    Both of a pair were measured one soon after the other, so that a machine whose speed drifts
    blurs their ratio less than each of them.
    """
    if ones and len(ones) == len(others):
        yield from (one / other for one, other in zip(ones, others, strict=True))
    elif ones and others:
        yield median(ones) / median(others)
