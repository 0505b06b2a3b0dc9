"""Which instance listens on which port. Pure: what is free is asked of the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class NoPortLeft(Exception):
    """The range has no free port for this instance."""

    def __init__(self, instance: str) -> None:
        super().__init__(instance)
        self.instance = instance


def assign(
    instances: Sequence[str],
    *,
    taken: set[int],
    remembered: Mapping[str, int],
    first: int,
    last: int,
    is_free: Callable[[str, int], bool],
) -> dict[str, int]:
    """A port for each instance: the one it had if that is still to be had, else the lowest free.

    ``taken`` are ports that the file gives to others; ``is_free(instance, port)`` may say yes for
    the port that an instance holds itself. Raises ``NoPortLeft``.
    """
    used = set(taken)
    ports: dict[str, int] = {}
    for name in instances:
        port = remembered.get(name)
        if port is not None and first <= port <= last and port not in used and is_free(name, port):
            ports[name] = port
            used.add(port)
    # A port that is remembered for an instance which is away for now is given out last.
    reserved = set(remembered.values()) - used
    candidates = [p for p in range(first, last + 1) if p not in used]
    candidates.sort(key=lambda port: (port in reserved, port))
    left = iter(candidates)
    for name in instances:
        if name not in ports:
            port = next((port for port in left if is_free(name, port)), None)
            if port is None:
                raise NoPortLeft(name)
            ports[name] = port
    return {name: ports[name] for name in instances}
