"""What is wrong with a message, by field."""

from dataclasses import dataclass

__all__ = ["Problem", "UnknownVersionError", "WireError"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a message.

    Attributes:
        at: The field, as a path such as ``tensors.norm`` or ``tensors[3].shape``.
        why: What was given and what is allowed.
    """

    at: str
    why: str


class WireError(ValueError):
    """A message that does not keep to the format; nothing else is raised by this package.

    Args:
        problems: At least one problem, in the order they were found.
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(f"{p.at}: {p.why}" for p in self.problems)


class UnknownVersionError(WireError):
    """The message says that it is of a version this side does not read.

    Attributes:
        supported: The versions this side reads.
    """

    def __init__(self, given: object, supported: tuple[int, ...]) -> None:
        allowed = ", ".join(map(str, supported))
        super().__init__(Problem("version", f"{given!r} is not supported; supported: {allowed}"))
        self.supported = supported
