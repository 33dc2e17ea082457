"""Messages about incidents to people, for those who run no Alertmanager."""

from gradwatch_service.notifications.apprise_addresses import NotifyError, senders
from gradwatch_service.notifications.notifier import Notifier

__all__ = ["Notifier", "NotifyError", "senders"]
