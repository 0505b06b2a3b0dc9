"""A plan as the outside sees it: what happens to whom, because of which line, and to requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from supervisor.core.durations import format_duration
from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.order import start_order
from supervisor.core.plan import Action, Change, plan
from supervisor.daemon.views import CauseView, ChangeView, PlanView
from supervisor.spec.diff import Difference, differences
from supervisor.spec.impact import Impact
from supervisor.spec.load import ClusterFile

_PROCESS = frozenset({Impact.RESTART, Impact.REPLACE, Impact.REREGISTER})
_BY_ACTION = {
    Action.UPDATE: frozenset({Impact.LIVE, Impact.REREGISTER}),
    Action.START: frozenset({Impact.SCALE}),
    Action.RESTART: _PROCESS,
    Action.ROLL_OUT: _PROCESS,
    Action.STOP: frozenset({Impact.SCALE}),
}
"""Which fields can be the reason for what."""
_SERVERS = (Role.API_SERVER, Role.WEB_SERVER)


def planned(
    running: Mapping[str, InstanceSpec],
    wanted: Mapping[str, InstanceSpec],
    old: ClusterFile | None,
    new: ClusterFile,
) -> PlanView:
    """What becomes of each slot. ``running`` is what was wanted there, ``old`` the file of that."""
    found = differences(old.cluster, new.cluster) if old else []
    waves = {name: i for i, wave in enumerate(start_order(wanted)) for name in wave}
    views = []
    for change in plan(running, wanted):
        spec = wanted.get(change.slot) or running[change.slot]
        causes = [_cause(one, new) for one in _concerning(change, spec, found)]
        stays = change.slot in wanted
        views.append(
            ChangeView(
                instance=change.slot,
                service=spec.service,
                action=change.action.value,
                reason="; ".join(cause.text for cause in causes) or change.reason,
                causes=causes,
                requests=_requests(change.action, spec, running.get(change.slot), wanted),
                command=list(spec.argv) if stays else [],
                env=[name for name, _ in spec.env] if stays else [],
                wave=waves.get(change.slot, 0),
            )
        )
    return PlanView(changes=views)


def changes_of(view: PlanView) -> list[ChangeView]:
    """Those that do anything."""
    return [change for change in view.changes if change.action != "keep"]


def at_next_up(old: ClusterFile, new: ClusterFile) -> list[Difference]:
    """What has changed and cannot count while the supervisor runs."""
    found = differences(old.cluster, new.cluster)
    return [one for one in found if one.impact is Impact.NEXT_UP]


def _concerning(
    change: Change, spec: InstanceSpec, found: Iterable[Difference]
) -> Sequence[Difference]:
    own = [one for one in found if _is_of(one, spec)]
    impacts = _BY_ACTION.get(change.action, frozenset())
    usual = [one for one in own if one.impact in impacts]
    if usual or not impacts:
        return usual
    # Also one replica more may take a GPU away from the others, and a controller that is elsewhere
    # from now on is one that stops here.
    return [one for one in own if one.impact in _PROCESS | {Impact.SCALE}]


def _is_of(difference: Difference, spec: InstanceSpec) -> bool:
    """Whether a field belongs to a service, or to all."""
    first, *rest = difference.path
    match first:
        case "workers" | "services":
            return bool(rest) and rest[0] == spec.service
        case "api_server" | "web_server":
            return first == spec.service
        case "controller":
            moves = {"host", "port", "external"} if spec.role in _SERVERS else {"external"}
            follows = spec.role in (*_SERVERS, Role.WORKER) and moves.issuperset(map(str, rest[:1]))
            return first == spec.service or follows
        case "python":
            return spec.role is not Role.COMMAND
        case "port_range":
            return spec.role is Role.WORKER
    return first in ("env", "env_file")


def _cause(difference: Difference, file: ClusterFile) -> CauseView:
    line = file.document.line(difference.path)
    place = f" ({file.path.name}:{line})" if line else ""
    return CauseView(
        field=".".join(map(str, difference.path)), line=line, text=f"{difference}{place}"
    )


def _requests(
    action: Action,
    spec: InstanceSpec,
    old: InstanceSpec | None,
    wanted: Mapping[str, InstanceSpec],
) -> str:
    """What it means for those who chat."""
    drain = f"its requests may finish, for {format_duration(spec.drain_timeout)} at most"
    match action:
        case Action.KEEP | Action.UPDATE:
            return "go on"
        case Action.START:
            return "reach it when it has answered a prompt" if spec.in_rotation else "not concerned"
        case Action.STOP:
            return drain if spec.in_rotation else "what it serves ends"
        case Action.ROLL_OUT if spec.role is Role.CONTROLLER:
            return "go on; the old one goes when no API server asks it any more"
        case Action.ROLL_OUT if old and old.listen != spec.listen and old.port == spec.port:
            return f"new connections are refused for a moment; {drain}"
        case Action.ROLL_OUT if spec.role is Role.API_SERVER and old and old.port != spec.port:
            return f"go on at the old port until the new one answers at the new one, then {drain}"
        case Action.ROLL_OUT if spec.role is Role.API_SERVER:
            return f"go on; the new one takes over on the same socket, then {drain}"
        case Action.ROLL_OUT if spec.surge and spec.beside is not None:
            return f"go on; the new one takes over when it answers, then {drain}"
        case Action.ROLL_OUT:
            replicas = sum(one.service == spec.service for one in wanted.values())
            if replicas > spec.max_unavailable:
                return f"go to the other replicas meanwhile; {drain}"
            return f"{drain}; nobody answers for this model until the new one is ready"
        case Action.RESTART if spec.role is Role.CONTROLLER:
            return "wait a moment in the API server; streams go on"
        case Action.RESTART:
            return (
                f"new ones fail for a moment; its own may finish, for {spec.stop_grace:g} s at most"
            )
