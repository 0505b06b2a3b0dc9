"""The control API: HTTP with JSON over a Unix socket; the CLI uses nothing else.

The routes are the table at the end; the OpenAPI description is made from it. A `{name}` may be
several, with commas between them. Who may come in, and how many of them, is decided in
``doors.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from supervisor import __version__
from supervisor.core.cluster import ClusterState
from supervisor.core.lifecycle import Stage, StartRequested, State, Status, StopRequested
from supervisor.core.rollout import Progress
from supervisor.daemon import views
from supervisor.daemon.doors import (
    Door,
    Limits,
    TooMany,
    answered,
    read_within,
    refused,
)
from supervisor.daemon.editing import Draft, Edits, carry_out
from supervisor.daemon.explain import explain
from supervisor.daemon.journal import Entry, Journal
from supervisor.daemon.planning import changes_of
from supervisor.daemon.reconciler import GoDown, Reconciler, StartSlot, StopSlot
from supervisor.daemon.reload import Reloader
from supervisor.daemon.upgrade import CannotUpgrade
from supervisor.runtime.blockers import blockers
from supervisor.runtime.listeners import listen
from supervisor.runtime.logs import follow, last_words, recent
from supervisor.runtime.safewrite import WriteError
from supervisor.runtime.templates import Sight
from supervisor.spec.checks import tls_context
from supervisor.spec.editing.tree import EditError
from supervisor.spec.model import Control
from supervisor.spec.paths import resolve
from supervisor.spec.problems import SpecError, dotted
from supervisor.spec.token import BadToken, read_token

log = logging.getLogger(__name__)

_MAX_BODY = 8 * 1024 * 1024
"""Room for the largest cluster file as a JSON text."""
_NO_BODY = 4096
"""Bytes that a request may bring where none are read."""
_AGAIN = 10.0
"""Seconds until a listener that could not be opened is tried again."""
_WHY_LINES = 15


@dataclass(frozen=True)
class Daemon:
    """What the API can reach."""

    reconciler: Reconciler
    journal: Journal
    file: Path
    run_dir: Path
    log_dir: Path
    started: float
    """Seconds since the epoch."""
    log_path: Callable[[str], Path]
    tree_of: Callable[[str], list[int]]
    """Pids of an instance's processes."""
    templates: Callable[[], Sequence[Sight]]
    reloader: Reloader
    upgrades: int
    upgrade: Callable[[], Awaitable[None]]
    """Raises CannotUpgrade."""
    note: Callable[[], Awaitable[None]]
    """Returns when what was told is noted for a successor: a wish cannot be seen in what runs."""
    progress_of: dict[frozenset[str], tuple[int, Progress]] = field(default_factory=dict)
    """Of services, since which change: what many wait for is worked out once."""


Body = TypeVar("Body", bound=BaseModel)


class Refusal(Exception):
    """A request that cannot be served; becomes an ErrorView."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# ---------------------------------------------------------------- handlers


async def get_status(daemon: Daemon, request: web.Request) -> views.StatusView:
    """The cluster and all its instances."""
    progress = daemon.reconciler.progress()
    return views.StatusView(
        cluster=views.ClusterView(
            state=daemon.reconciler.state.value,
            file=str(daemon.file),
            pid=os.getpid(),
            version=__version__,
            since=_iso(daemon.started),
            upgrades=daemon.upgrades,
            run_dir=str(daemon.run_dir),
            log_dir=str(daemon.log_dir),
            last_event=daemon.journal.number,
            problems=[str(problem) for problem in daemon.reloader.problems],
            under_way=progress.under_way,
            failed=progress.failed,
            templates=[views.TemplateView(**asdict(one)) for one in daemon.templates()],
        ),
        instances=[_instance(daemon, name) for name in daemon.reconciler.specs],
    )


async def get_why(daemon: Daemon, request: web.Request) -> views.WhysView:
    """Why an instance, or every instance of a service, is as it is."""
    return views.WhysView(instances=[_why(daemon, name) for name in _named(daemon, request)])


async def get_plan(daemon: Daemon, request: web.Request) -> views.PlanView:
    """What the file as it is now would change."""
    return await _plan(daemon, None)


async def post_plan(daemon: Daemon, request: web.Request) -> views.PlanView:
    """What the file would change if it held the `text` of the body."""
    draft = await _body(request, Draft)
    return await _plan(daemon, draft.text)


async def _plan(daemon: Daemon, text: str | None) -> views.PlanView:
    try:
        return await daemon.reloader.plan(text)
    except SpecError as error:
        raise Refusal(422, str(error)) from None


async def post_reload(daemon: Daemon, request: web.Request) -> views.ReloadView:
    """Apply the file as it is now. With `retry=1`, also try again what could not be started."""
    _refuse_if_going_down(daemon)
    try:
        done = await daemon.reloader.reload(retry=_flag(request, "retry"))
    except SpecError as error:
        raise Refusal(422, str(error)) from None
    return views.ReloadView(changed=done.changed, number=done.number, changes=changes_of(done.plan))


async def post_edit(daemon: Daemon, request: web.Request) -> views.EditView:
    """Edit the file, keeping its comments, and apply it; with `dry_run` only say what it does."""
    _refuse_if_going_down(daemon)
    wish = await _body(request, Edits)
    try:
        return await carry_out(wish, daemon.reloader)
    except (SpecError, EditError) as error:
        raise Refusal(422, str(error)) from None
    except (WriteError, OSError, UnicodeDecodeError) as error:
        raise Refusal(409, str(error)) from None


async def get_settled(daemon: Daemon, request: web.Request) -> views.SettledView:
    """Return when the last change is in service, or has failed; `timeout` in seconds bounds it.

    With `service` only failures of these count.
    """
    timeout = _number(request, "timeout", 600.0, most=86400.0)
    services = request.query.getall("service", [])
    reconciler = daemon.reconciler

    def is_settled() -> bool:
        progress = _progress(daemon, services)
        return bool(progress.failed) or not progress.under_way

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await reconciler.until(is_settled)
    progress = _progress(daemon, services)
    return views.SettledView(
        settled=not (progress.failed or progress.under_way),
        under_way=progress.under_way,
        failed=progress.failed,
    )


def _once_a_change(reconciler: Reconciler, predicate: Callable[[], bool]) -> Callable[[], bool]:
    """``predicate``, asked anew only when something has changed: most messages are answers to
    probes that say what the one before has said."""
    last, answer = -1, False

    def asked() -> bool:
        nonlocal last, answer
        if reconciler.changes != last:
            last, answer = reconciler.changes, predicate()
        return answer

    return asked


def _progress(daemon: Daemon, services: list[str]) -> Progress:
    known, changes = daemon.progress_of, daemon.reconciler.changes
    for old in [one for one, (since, _) in known.items() if since != changes]:
        del known[old]
    of = frozenset(services)
    if of not in known:
        known[of] = changes, daemon.reconciler.progress(of)
    return known[of][1]


async def post_start(daemon: Daemon, request: web.Request) -> views.AcceptedView:
    """Start a service or one instance that was stopped or has failed."""
    names = _named(daemon, request)
    _refuse_if_going_down(daemon)
    _tell_slots(daemon, request, StartSlot, names, StartRequested("asked to start"))
    await daemon.note()
    return views.AcceptedView(instances=names)


async def post_stop(daemon: Daemon, request: web.Request) -> views.AcceptedView:
    """Stop a service or one instance, until it is started again."""
    names = _named(daemon, request)
    _tell_slots(daemon, request, StopSlot, names, StopRequested("asked to stop"))
    await daemon.note()
    return views.AcceptedView(instances=names)


def _tell_slots(
    daemon: Daemon,
    request: web.Request,
    tell: type[StartSlot | StopSlot],
    names: list[str],
    event: StartRequested | StopRequested,
) -> None:
    """A replica or a service means whatever runs there, also when a rollout changes that now."""
    slots = [slot for name in _asked(request) for slot in daemon.reconciler.slots(name)]
    for slot in slots:
        daemon.reconciler.post(tell(slot, event.reason))
    for name in () if slots else names:
        daemon.reconciler.deliver(name, event)


async def post_restart(daemon: Daemon, request: web.Request) -> views.AcceptedView:
    """Stop a service or one instance and start it again."""
    names = _named(daemon, request)
    _refuse_if_going_down(daemon)
    daemon.reconciler.restart_instances(names, "asked to restart")
    await daemon.note()
    return views.AcceptedView(instances=names)


async def post_down(daemon: Daemon, request: web.Request) -> views.AcceptedView:
    """Stop everything in order, then end; a second time: without grace."""
    daemon.reconciler.post(GoDown("asked to stop the cluster"))
    return views.AcceptedView(instances=list(daemon.reconciler.specs))


async def post_upgrade(daemon: Daemon, request: web.Request) -> views.AcceptedView:
    """Become the program that is installed now: same pid, nothing else is touched.

    It answers before it does; it is done when `upgrades` in the status has grown.
    """
    _refuse_if_going_down(daemon)
    try:
        await daemon.upgrade()
    except CannotUpgrade as error:
        raise Refusal(409, f"not upgraded: {error}; the program that runs goes on") from None
    return views.AcceptedView(instances=[])


async def get_wait(daemon: Daemon, request: web.Request) -> views.WaitView:
    """Return when the named services (all, if none is named) are ready, or cannot become so.

    `timeout` in seconds bounds the wait. It ends early when an instance has failed for good.
    """
    asked = request.query.getall("service", [])
    _resolve(daemon, asked)
    timeout = _number(request, "timeout", 600.0, most=86400.0)
    reconciler = daemon.reconciler

    def unready() -> list[str]:
        """Looked up anew each time: a rollout brings other instances."""
        found = itertools.chain(*_find(daemon, asked).values()) if asked else ()
        names = _unique(found) or list(reconciler.specs)
        return [
            name
            for name in names
            if not reconciler.is_leaving(name)
            and reconciler.statuses[name].state is not State.READY
            and (asked or reconciler.statuses[name].wanted)
        ]

    def is_ready() -> bool:
        return not unready() and not reconciler.is_short_of(asked)

    def hopeless() -> bool:
        return any(
            _is_final(reconciler.statuses[name]) or reconciler.blocked_by(name)
            for name in unready()
        )

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await reconciler.until(_once_a_change(reconciler, lambda: is_ready() or hopeless()))
    found = [_instance(daemon, name) for name in unready()]
    return views.WaitView(ready=is_ready(), hopeless=hopeless(), not_ready=found)


async def get_events(daemon: Daemon, request: web.Request) -> views.EventsView | web.StreamResponse:
    """What happened; with `follow=1` one JSON object a line, without end."""
    after = int(_number(request, "after", 0, most=2**53))
    if not _flag(request, "follow"):
        found = [_event(entry) for entry in daemon.journal.since(after)]
        return views.EventsView(events=found)
    entries = daemon.journal.follow(after)
    return await _stream(
        request,
        (_event(entry).model_dump_json() async for entry in entries),
        "application/x-ndjson",
    )


async def get_logs(daemon: Daemon, request: web.Request) -> web.StreamResponse:
    """The log of one instance (or of a service's only one): `lines` last ones, with `follow=1`
    also what comes."""
    names = _named(daemon, request)
    lines = int(_number(request, "lines", 100, most=1_000_000))
    one_by_one = _follow_all if _flag(request, "follow") else _recent_of_all
    if len(names) > 1:
        return await _stream(request, one_by_one(daemon, names, lines), "text/plain")
    read = follow if _flag(request, "follow") else recent
    path = daemon.log_path(names[0]) if names else None
    return await _stream(request, read(path, lines) if path else _nothing(), "text/plain")


async def get_openapi(daemon: Daemon, request: web.Request) -> web.StreamResponse:
    """This description."""
    return web.json_response(openapi())


# ---------------------------------------------------------------- what handlers share


async def _body(request: web.Request, model: type[Body]) -> Body:
    async with read_within(_limits(request).patience, request):
        raw = await request.read()
    try:
        return await asyncio.to_thread(model.model_validate_json, raw)
    except ValidationError as error:
        text = "; ".join(f"{dotted(one['loc'])}: {one['msg']}" for one in error.errors())
        raise Refusal(400, f"the body is not as /openapi.json describes it: {text}") from None


def _refuse_if_going_down(daemon: Daemon) -> None:
    if daemon.reconciler.state is ClusterState.STOPPING:
        raise Refusal(409, "the cluster is stopping; start it again with `llm-supervisor up`")


def _asked(request: web.Request) -> list[str]:
    """The names in the path; no name has a comma."""
    return request.match_info["name"].split(",")


def _named(daemon: Daemon, request: web.Request) -> list[str]:
    return _resolve(daemon, _asked(request))


def _resolve(daemon: Daemon, names: Iterable[str]) -> list[str]:
    """What `_find` finds. Raises Refusal where there is nothing for one of them."""
    found = _find(daemon, names)
    for name, instances in found.items():
        if not instances and not daemon.reconciler.slots(name):
            specs = daemon.reconciler.specs
            known = sorted({spec.service for spec in specs.values()} | set(specs))
            raise Refusal(
                404, f"there is no service or instance {name!r}; there are: {', '.join(known)}"
            )
    return _unique(itertools.chain(*found.values()))


def _find(daemon: Daemon, names: Iterable[str]) -> dict[str, list[str]]:
    """By name, the instances of a replica or a service that are to stay, else those that leave it;
    or the instance of that very name."""
    reconciler = daemon.reconciler
    instances: dict[str, list[str]] = {}  # by slot and by service
    for instance, spec in reconciler.specs.items():
        for key in {spec.slot, spec.service}:
            instances.setdefault(key, []).append(instance)
    slots: dict[str, list[str]] = {}
    for slot, spec in reconciler.wanted.items():
        slots.setdefault(spec.service, []).append(slot)
    found = {}
    for name in names:
        keys = [name] if name in reconciler.wanted else [name, *slots.get(name, ())]
        of_it = _unique(one for key in keys for one in instances.get(key, ()))
        stay = [one for one in of_it if not reconciler.is_leaving(one)]
        found[name] = stay or of_it or [one for one in [name] if one in reconciler.specs]
    return found


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _instance(daemon: Daemon, name: str) -> views.InstanceView:
    spec, status = daemon.reconciler.specs[name], daemon.reconciler.statuses[name]
    return views.InstanceView(
        name=name,
        service=spec.service,
        role=spec.role.value,
        kind=spec.kind,
        state=status.state.value,
        desired="running" if status.wanted else "stopped",
        reason=_reason(daemon, name, status),
        pid=status.pid,
        address=spec.address,
        models=list(spec.models),
        gpus=list(spec.gpus),
        restarts=status.restarts,
        since=_wall(status.since) or _iso(daemon.started),
        started_at=_wall(status.started_at) if status.pid else None,
        ready_at=_wall(status.ready_at) if status.pid else None,
        last_exit=status.last_exit or None,
        last_exit_class=status.last_exit_class.value if status.last_exit_class else None,
    )


def _reason(daemon: Daemon, name: str, status: Status) -> str:
    if status.state is State.STOPPED and status.wanted:
        waits = daemon.reconciler.waiting_for(name)
        if blocked := daemon.reconciler.blocked_by(name):
            return f"waiting for {', '.join(blocked)}, which does not come by itself"
        if waits:
            return f"waiting for {', '.join(waits)}"
        held_back = daemon.reconciler.held_back(name)
        return f"waits: {held_back}" if held_back else status.reason
    if status.state is State.STARTING and status.detail:
        return f"{status.reason} ({status.detail})"
    return status.reason


def _why(daemon: Daemon, name: str) -> views.WhyView:
    spec, status = daemon.reconciler.specs[name], daemon.reconciler.statuses[name]
    now = asyncio.get_running_loop().time()
    reconciler = daemon.reconciler
    blocked = {one: reconciler.statuses[one].state for one in reconciler.blocked_by(name)}
    failure = None if reconciler.is_leaving(name) else reconciler.failure(spec.slot)
    left = blockers(daemon.tree_of(name)) if _is_asked_to_end(status) else []
    sentences = explain(
        spec,
        status,
        reconciler.waiting_for(name),
        blocked,
        failure,
        held_back=reconciler.held_back(name),
        left=left,
        now=now,
    )
    healthy = status.state in (State.READY, State.STOPPED) and not status.restarts
    words_of = failure.instance if failure else None if healthy else name
    lines = last_words(daemon.log_path(words_of), _WHY_LINES) if words_of else []
    return views.WhyView(name=name, sentences=sentences, log=lines)


def _is_asked_to_end(status: Status) -> bool:
    return status.state is State.STOPPING and status.stage is not Stage.DRAIN


def _is_final(status: Status) -> bool:
    return status.state is State.FAILED or (status.state is State.STOPPED and not status.wanted)


def _event(entry: Entry) -> views.EventView:
    return views.EventView(
        number=entry.number,
        time=_iso(entry.time),
        instance=entry.instance,
        state=entry.state,
        reason=entry.reason,
        pid=entry.pid,
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _wall(moment: float | None) -> str | None:
    """A moment of the loop's clock, which never jumps, as a date."""
    if not moment:
        return None
    return _iso(time.time() - (asyncio.get_running_loop().time() - moment))


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "0") not in ("", "0", "false")


def _number(request: web.Request, name: str, default: float, *, most: float) -> float:
    try:
        value = float(request.query.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise Refusal(400, f"{name} must be a number from 0 to {most:g}")
    return value


async def _follow_all(daemon: Daemon, names: list[str], lines: int) -> AsyncGenerator[str, None]:
    """The logs of several instances as one, each line with its instance."""
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=100)

    async def pump(name: str) -> None:
        async with contextlib.aclosing(follow(daemon.log_path(name), lines)) as found:
            async for line in found:
                await queue.put(f"{name} | {line}")

    pumps = [asyncio.create_task(pump(name)) for name in names]
    try:
        while True:
            yield await queue.get()
    finally:
        for task in pumps:
            task.cancel()


async def _recent_of_all(daemon: Daemon, names: list[str], lines: int) -> AsyncGenerator[str, None]:
    for name in names:
        async with contextlib.aclosing(recent(daemon.log_path(name), lines)) as found:
            async for line in found:
                yield f"{name} | {line}"


async def _nothing() -> AsyncGenerator[str, None]:
    """A service all of whose instances are yet to come has no log."""
    for line in list[str]():
        yield line


async def _stream(
    request: web.Request, lines: AsyncGenerator[str, None], content_type: str
) -> web.StreamResponse:
    """Memory for what fits into the socket and little more, whoever does not read it."""
    response = web.StreamResponse(headers={"Content-Type": f"{content_type}; charset=utf-8"})
    await response.prepare(request)
    since_pause = 0
    async with contextlib.aclosing(lines):
        async for line in lines:
            raw = _utf8(f"{line}\n")
            async with read_within(_limits(request).unread, request):
                await response.write(raw)
            since_pause += len(raw)
            if since_pause > _STRETCH:  # a reader that keeps up would never let others have a turn
                since_pause = 0
                await asyncio.sleep(0)
    return response


_STRETCH = 64 * 1024


def _utf8(text: str) -> bytes:
    """A file name need not be UTF-8; in JSON the escapes mean what they stand for."""
    return text.encode(errors="backslashreplace")


def _limits(request: web.Request) -> Limits:
    return request.app[_DOOR].limits


_DOOR = web.AppKey("door", Door)


# ---------------------------------------------------------------- the table

Handler = Callable[[Daemon, web.Request], Awaitable[views.View | web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    handler: Handler
    answer: type[views.View] | None
    query: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    lasts: bool = False
    """It may take as long as the client likes."""


ROUTES = (
    Route("GET", "/v1/status", get_status, views.StatusView),
    Route("GET", "/v1/wait", get_wait, views.WaitView, ("service", "timeout"), lasts=True),
    Route("GET", "/v1/plan", get_plan, views.PlanView),
    Route("POST", "/v1/plan", post_plan, views.PlanView, body=Draft),
    Route("POST", "/v1/reload", post_reload, views.ReloadView, ("retry",)),
    Route("POST", "/v1/edit", post_edit, views.EditView, body=Edits),
    Route("GET", "/v1/settled", get_settled, views.SettledView, ("service", "timeout"), lasts=True),
    Route("GET", "/v1/events", get_events, views.EventsView, ("after", "follow"), lasts=True),
    Route("POST", "/v1/down", post_down, views.AcceptedView),
    Route("POST", "/v1/upgrade", post_upgrade, views.AcceptedView),
    Route("GET", "/v1/services/{name}/why", get_why, views.WhysView),
    Route("GET", "/v1/services/{name}/logs", get_logs, None, ("lines", "follow"), lasts=True),
    Route("POST", "/v1/services/{name}/start", post_start, views.AcceptedView),
    Route("POST", "/v1/services/{name}/stop", post_stop, views.AcceptedView),
    Route("POST", "/v1/services/{name}/restart", post_restart, views.AcceptedView),
    Route("GET", "/openapi.json", get_openapi, None),
)


def openapi() -> dict[str, Any]:
    """The API as an OpenAPI 3.1 document."""
    answers: set[type[BaseModel]] = {route.answer for route in ROUTES if route.answer}
    bodies = {route.body for route in ROUTES if route.body}
    ordered = sorted(answers | bodies | {views.ErrorView}, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(one, "validation" if one in bodies else "serialization") for one in ordered],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm-supervisor control API", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(route: Route) -> dict[str, Any]:
    several = {"description": "A service or an instance; or several, with commas between them."}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    in_path = [name | several]
    in_query = [{"name": q, "in": "query", "schema": {"type": "string"}} for q in route.query]
    body = {"requestBody": {"required": True, "content": _content(route.body)}}
    return {
        **(body if route.body else {}),
        "operationId": route.handler.__name__,
        "summary": " ".join((route.handler.__doc__ or "").split()),
        "parameters": (in_path if "{name}" in route.path else []) + in_query,
        "responses": {
            "200": {"description": "Done.", "content": _content(route.answer)},
            "default": {"description": "Why not.", "content": _content(views.ErrorView)},
        },
    }


def _content(answer: type[BaseModel] | None) -> dict[str, Any]:
    if answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer.__name__}"}}}


# ---------------------------------------------------------------- serving


class Api:
    """Serves the table on a Unix socket, and on the TCP listener of the file if it names one."""

    def __init__(self, daemon: Daemon, limits: Limits | None = None) -> None:
        self._daemon = daemon
        self._limits = limits or Limits()
        self._doors: list[Door] = []
        self._opening: asyncio.Task[None] | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Serve on this Unix socket from now on, instead of another one.

        The TCP listener is opened as soon as that is possible: that its port is taken is no reason
        to let go of the models.
        """
        if self._doors:
            await self._doors[0].listen(listener)
            return
        await self._open(listener)
        file = self._daemon.reloader.file
        if file.cluster.control is not None:
            self._opening = asyncio.create_task(self._open_tcp(file.cluster.control, file.base))

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        for door in self._doors:
            await door.close()

    async def _open(
        self, listener: socket.socket, token: str | None = None, tls: SSLContext | None = None
    ) -> None:
        door = Door(self._add_routes, largest=_MAX_BODY, token=token, tls=tls, limits=self._limits)
        self._doors.append(door)
        await door.listen(listener)

    def _add_routes(self, app: web.Application, door: Door) -> None:
        app[_DOOR] = door
        for route in ROUTES:
            app.router.add_route(route.method, route.path, _bind(self._daemon, route, door))

    async def _open_tcp(self, control: Control, base: Path) -> None:
        tell, told = self._daemon.journal.write, ""
        where = f"{control.host}:{control.port}"
        while True:
            try:
                token, tls = read_token(resolve(base, control.token_file)), _tls(control, base)
                listener = await asyncio.to_thread(listen, (control.host, control.port))
            except (BadToken, OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                if why != told:
                    text = f"cannot listen on {where}: {why}; tries again every {_AGAIN:g} s"
                    tell("", "control", text)
                told = why
                await asyncio.sleep(_AGAIN)
            else:
                await self._open(listener, token, tls)
                tell("", "control", f"the control API listens on {where}, too")
                return


def _tls(control: Control, base: Path) -> SSLContext | None:
    if control.tls_cert is None or control.tls_key is None:
        return None
    return tls_context(resolve(base, control.tls_cert), resolve(base, control.tls_key))


def _bind(
    daemon: Daemon, route: Route, door: Door
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    kind = "bodies" if route.body else "lasting" if route.lasts else None
    most = _MAX_BODY if route.body else _NO_BODY

    async def serve(request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > most:
            return refused(413, f"a body of more than {most} bytes has no meaning here", close=True)
        try:
            with door.place(kind) if kind else contextlib.nullcontext():
                answer = await route.handler(daemon, request)
        except Refusal as refusal:
            return refused(refusal.status, str(refusal))
        except web.RequestPayloadError:
            return refused(400, "the body is not sent as its headers say", close=True)
        except (ConnectionError, web.HTTPException, TooMany):
            raise  # the client went away in the middle of a stream; or the door's affair
        except Exception:
            # Not the request itself: there may be secrets in it.
            log.exception("cannot answer %s %s; please report this", route.method, route.path)
            return refused(
                500, "a defect of the supervisor, whose log tells more; please report it"
            )
        return answered(answer) if isinstance(answer, views.View) else answer

    return serve
