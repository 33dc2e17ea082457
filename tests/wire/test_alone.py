"""The wire needs nothing but the standard library."""

import subprocess
import sys


def test_importing_the_wire_loads_nothing_foreign() -> None:
    code = (
        "import sys; before = set(sys.modules); import gradwatch_wire; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["gradwatch_wire"]
