"""What ``import gradwatch`` offers is what is listed, and nothing of a framework comes with it."""

import subprocess
import sys
from types import ModuleType

import gradwatch


def test_every_public_name_is_listed_and_in_order() -> None:
    offered = {
        name
        for name, value in vars(gradwatch).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert gradwatch.__all__ == sorted(gradwatch.__all__)
    assert set(gradwatch.__all__) == offered | {"__version__", "clip"}


def test_importing_it_loads_no_framework_no_http_and_no_integration() -> None:
    code = (
        "import sys, threading, gradwatch; from pathlib import Path; "
        "loaded = {name.split('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'transformers', 'lightning', 'accelerate', 'urllib3', 'typer', "
        "'fastapi', 'gradwatch_service'}), 'gradwatch.integrations' in sys.modules, "
        "threading.active_count())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[] False 1"
