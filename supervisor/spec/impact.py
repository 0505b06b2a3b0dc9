"""What a changed value means for what runs. Every field of the model declares it beside its type.

``load_8bit: Replace[bool]``: whoever adds a field says what editing it does to people who chat.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, TypeVar


class Impact(StrEnum):
    """From the mildest to the hardest; shown as ``x-on-change`` in the JSON schema."""

    NOTHING = "nothing"
    """It is for people, or only a way to write other values (``defaults``)."""
    LIVE = "live"
    """The running instance is told; its process is not touched."""
    REREGISTER = "re-register"
    """The controller is told; the process is not touched, where FastChat allows that."""
    SCALE = "scale"
    """Instances are started or stopped; all others are not touched."""
    RESTART = "restart"
    """The process is stopped and started again with the new value."""
    REPLACE = "replace"
    """A new process takes over: a worker's is rolled out, others are restarted."""
    NEXT_UP = "next up"
    """It counts when the supervisor itself starts the next time."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "x-on-change": self.value}


_T = TypeVar("_T")

Nothing = Annotated[_T, Impact.NOTHING]
Live = Annotated[_T, Impact.LIVE]
Reregister = Annotated[_T, Impact.REREGISTER]
Scale = Annotated[_T, Impact.SCALE]
Restarts = Annotated[_T, Impact.RESTART]
Replace = Annotated[_T, Impact.REPLACE]
NextUp = Annotated[_T, Impact.NEXT_UP]
