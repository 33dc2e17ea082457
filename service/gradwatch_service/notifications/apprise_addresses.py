"""Addresses of messages, as Apprise reads them: Slack, Discord, ntfy, mail, webhooks and more."""

from collections.abc import Callable, Sequence

from gradwatch_service.notifications.message import Message

__all__ = ["NotifyError", "Sender", "senders"]

# Says whether the message arrived; may take seconds, may raise.
Sender = Callable[[Message], bool]

_TYPES = {"critical": "failure", "warning": "warning"}


class NotifyError(ValueError):
    """An address that nothing can be sent to, or no Apprise to send it with."""


def senders(addresses: Sequence[str]) -> list[Sender]:
    """One sender per address. Nothing is sent yet.

    Raises:
        NotifyError: Apprise is not installed, or does not understand an address. The address
            itself is not in the message: it usually holds a secret.
    """
    return [_sender(number, address) for number, address in enumerate(addresses, 1)]


def _sender(number: int, address: str) -> Sender:
    try:
        import apprise  # noqa: PLC0415 - an extra, needed only by those who give an address
    except ImportError as error:
        raise NotifyError(
            "--notify needs Apprise: python -m pip install 'gradwatch[service,notify]'"
        ) from error
    known = apprise.Apprise()
    if not known.add(address):
        scheme = address.partition("://")[0] if "://" in address else "no scheme"
        raise NotifyError(
            f"--notify: address {number} ({scheme[:20]}) is none that Apprise understands; "
            "examples: slack://token/#channel, ntfy://topic, mailto://user:password@host, "
            "json://host/path"
        )

    def send(message: Message) -> bool:
        return bool(
            known.notify(
                body=message.body,
                title=message.title,
                notify_type=_TYPES.get(message.level, "info"),
                body_format="text",
            )
        )

    return send
