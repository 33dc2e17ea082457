"""Programs that tests need from the system, installed by scripts/system-tools."""

import os
import shutil

import pytest


def tool(name: str) -> str:
    """Path of the program; without it the test is skipped, under CI=true it fails."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not installed: scripts/system-tools installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path
