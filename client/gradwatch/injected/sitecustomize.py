"""Python runs this first in every process below ``gradwatch exec``; its folder leads PYTHONPATH.

It imports nothing but the standard library: most of those processes (a launcher, pip, a compiler) never
load torch. Where torch's optimizers are loaded, a hook waits for the first step of the first of them.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_OPTIMIZERS = "torch.optim.optimizer"


class _AfterImport(MetaPathFinder):
    """Lets one module load as always and then puts torch's global step hook on."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002 - the protocol
        if name != _OPTIMIZERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_hook(module: ModuleType) -> None:
                load(module)
                handle = module.register_optimizer_step_pre_hook(_first_step)
                _handles.append(handle)

            spec.loader.exec_module = load_and_hook  # type: ignore[method-assign]  # this one loader
        return spec


_handles: list[Any] = []


def _first_step(optimizer: Any, _args: object, _kwargs: object) -> None:
    """Watch what there is, inside the first step of the first optimizer; then never again."""
    for handle in _handles:
        handle.remove()
    _handles.clear()
    try:
        from gradwatch.injection import watch_everything  # noqa: PLC0415 - only where torch steps

        watch_everything(optimizer)
    except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
        print(f"gradwatch: not watching: {error}", file=sys.stderr)  # noqa: T201 - no logger yet


def _run_the_environments_own() -> None:
    """Import the sitecustomize that would have run without ours."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        if ours is not None:
            sys.modules["sitecustomize"] = ours


sys.meta_path.insert(0, _AfterImport())
_run_the_environments_own()
