"""What distinguishes the two forms of a run: on fakes, and on the real FastChat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from chaos.blows import Blow
    from chaos.world import World

Content = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A request that failed. Times are of the monotonic clock."""

    name: str
    began: float
    ended: float
    what: str


@dataclass(frozen=True)
class Span:
    """Slots that a blow has touched, from just before it until all was well again."""

    slots: Collection[str]
    began: float
    ended: float


class Clients(Protocol):
    """Those who ask the cluster for something all the time."""

    requests: int
    excused: int
    """Requests that failed as they may."""

    def running(self) -> AbstractContextManager[None]: ...
    def offer(self, world: World) -> None:
        """From now on whatever runs is asked."""

    def withdraw(self, world: World, slots: Collection[str]) -> None:
        """Ask for these no more; returns when all requests for them are under way."""

    def unexcused(self, world: World, spans: Collection[Span]) -> list[Failure]:
        """The failures since the last time that nothing explains."""


@dataclass(frozen=True)
class Form:
    name: str
    content: Callable[[Path], Content]
    """The first file."""
    generations: Callable[[Content], dict[str, str]]
    """The slots that a file asks for, each with the generation of its process."""
    pid: Callable[[World, str], int | None]
    """The leader in a slot, to be had without a supervisor; None if there is none."""
    clients: Callable[[int, Content], Clients]
    """For a seed."""
    blows: Sequence[Blow]
    bound: float
    """Seconds within which all must be well after a blow. Not a measure of speed."""
    one_leader: bool = False
    """Whether no two processes of one name, neither below the other, may ever be seen."""
