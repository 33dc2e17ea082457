"""Compiles the CPU kernel into the wheel, or into the source tree of an editable install.

Without a C compiler the wheel is pure Python and works everywhere, with the slower reference kernel.
CC chooses the compiler; CC=none leaves the kernel out.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("client/gradwatch/kernels/cpu.c")
LIBRARY = Path("gradwatch/kernels/_cpu.so")
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp-simd",  # `omp simd` only: no OpenMP library, no threads
    # What these promise does not touch values; -ffast-math would, and must never be added.
    "-fno-math-errno",
    "-fno-trapping-math",
]


class CompileKernel(BuildHookInterface[Any]):
    """Builds ``_cpu.so`` and gives the wheel its platform's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        if self.target_name != "wheel":
            return
        root, editable = Path(self.root), version == "editable"
        library = root / ("client" if editable else "build") / LIBRARY
        compiled = compile_kernel(root / SOURCE, library, self.app.display_warning)
        if compiled and not editable:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["force_include"][str(library)] = str(LIBRARY)


def compile_kernel(source: Path, library: Path, warn: Any = print) -> bool:
    """Compile the kernel; return whether there is one now. A failure is a warning, never an error."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or None
    if compiler is None or os.name == "nt":
        warn("no C compiler: gradwatch will use its slower pure-torch kernel")
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    # Into a file of its own first: a process that has the old one loaded keeps it.
    fresh = library.with_suffix(".new")
    command = [compiler, *FLAGS, "-o", str(fresh), str(source), "-lm"]
    # The command is made of this file's flags and the compiler that the user chose.
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        warn(f"the CPU kernel did not compile, gradwatch will use pure torch:\n{done.stderr}")
        fresh.unlink(missing_ok=True)
        return False
    fresh.replace(library)
    return True


def platform_tag() -> str:
    """Return this platform's part of a wheel tag, such as ``linux_x86_64``."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
