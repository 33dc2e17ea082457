"""Who may ask for what: hosts, tokens, scopes and projects."""

from gradwatch_service.access.callers import (
    Access,
    Admin,
    Caller,
    Ingester,
    Reader,
    VisibleRun,
    check_run_id,
)

__all__ = ["Access", "Admin", "Caller", "Ingester", "Reader", "VisibleRun", "check_run_id"]
