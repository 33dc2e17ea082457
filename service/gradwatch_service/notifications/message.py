"""What a message about an incident says."""

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["LEVELS", "Incident", "Level", "Message", "message_of"]

Level = Literal["critical", "warning", "info"]
LEVELS: tuple[Level, ...] = ("critical", "warning", "info")

_LONGEST = 1500
# Names come from those who report; in a chat they must not call people or draw links.
_HARMLESS = str.maketrans({"@": "@\u200b", "<": "\u2039", ">": "\u203a", "`": "'"})


class Incident(Protocol):
    """What a message is made from."""

    @property
    def id(self) -> str:
        """Its id, which stays the same when it is revised."""

    @property
    def kind(self) -> str:
        """What it is."""

    @property
    def severity(self) -> str:
        """How much it matters."""

    @property
    def status(self) -> str:
        """``open``, ``closed`` or ``retracted``."""

    @property
    def onset_step(self) -> int:
        """Where it began."""

    @property
    def verdict(self) -> str:
        """What happened, in one sentence."""

    @property
    def why(self) -> str:
        """What the data show of the cause."""

    @property
    def next(self) -> str:
        """What to do."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message, as plain text.

    Attributes:
        title: One line.
        body: A few more.
        level: Severity of what it is about.
    """

    title: str
    body: str
    level: str


def message_of(run: str, incident: Incident) -> Message:
    """The message about an incident that has opened."""
    kind = incident.kind.replace("_", " ")
    lines = [incident.verdict, incident.why, incident.next]
    body = "\n".join(line for line in lines if line)[:_LONGEST]
    title = f"gradwatch: run {run}: {kind} since step {incident.onset_step} ({incident.severity})"
    return Message(title.translate(_HARMLESS), body.translate(_HARMLESS), incident.severity)
