"""A plan as the outside sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from supervisor.core.instance import InstanceSpec
from supervisor.core.order import start_order
from supervisor.core.plan import Change
from supervisor.daemon.views import ChangeView, PlanView


def changes(planned: Iterable[Change], wanted: Mapping[str, InstanceSpec]) -> PlanView:
    waves = {name: i for i, wave in enumerate(start_order(wanted)) for name in wave}
    return PlanView(
        changes=[
            ChangeView(
                instance=change.instance,
                action=change.action.value,
                reason=change.reason,
                command=list(wanted[change.instance].argv) if change.instance in wanted else [],
                env=[name for name, _ in wanted[change.instance].env]
                if change.instance in wanted
                else [],
                wave=waves.get(change.instance, 0),
            )
            for change in planned
        ]
    )
