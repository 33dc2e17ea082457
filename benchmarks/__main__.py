"""Run benchmarks by name: ``python -m benchmarks NAME [OPTIONS]``; without a name, list them.

Each prints a table for docs/performance.md. A benchmark is a module here with a ``main()``.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    known = names()
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help"}:
        print("usage: python -m benchmarks NAME [OPTIONS]\n")
        for name in known:
            told = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
            print(f"  {name:<16} {told.splitlines()[0] if told else ''}")
        return 0
    name = sys.argv[1]
    if name not in known:
        print(f"no benchmark {name!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    sys.argv = [f"benchmarks {name}", *sys.argv[2:]]
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


def names() -> list[str]:
    """Modules and packages of this folder that say ``def main(``."""
    found = {
        m.name: FOLDER / m.name / "__init__.py" if m.ispkg else FOLDER / f"{m.name}.py"
        for m in pkgutil.iter_modules([str(FOLDER)])
        if m.name != "__main__"
    }
    return [name for name in sorted(found) if "\ndef main(" in found[name].read_text()]


if __name__ == "__main__":
    raise SystemExit(main())
