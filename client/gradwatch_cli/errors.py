"""How a command says that it could not do what was asked."""

__all__ = ["CommandError"]


class CommandError(Exception):
    """Ends a command with one line on standard error and an exit code.

    Args:
        message: What was given, what is allowed, what to do. One line, no traceback follows.
        code: 1 when the work could not be done, 2 for wrong use or a wrong environment.
    """

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
