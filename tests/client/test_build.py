"""What `pip install` and `pip wheel` make of the C kernel, with a compiler and without."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "client", "service"]


@pytest.fixture
def source(tmp_path):
    for name in NEEDED:
        origin = ROOT / name
        if origin.is_dir():
            junk = shutil.ignore_patterns("__pycache__", "*.so", "*.new")
            shutil.copytree(origin, tmp_path / name, ignore=junk)
        else:
            shutil.copy(origin, tmp_path / name)
    return tmp_path


def build_wheel(source, compiler):
    code = f"import hatchling.build as b; print('wheel', b.build_wheel({str(source / 'dist')!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={"CC": compiler, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return source / "dist" / done.stdout.split()[-1], done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler: only the pure wheel can be built"
)
def test_with_a_compiler_the_wheel_carries_the_kernel_and_its_platform(source):
    wheel, _ = build_wheel(source, "cc")

    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(n for n in names if n.endswith("/WHEEL"))
        assert b"Root-Is-Purelib: false" in archive.read(metadata)
        assert "gradwatch/kernels/_cpu.so" in names
        assert archive.read("gradwatch/kernels/_cpu.so")[1:4] == b"ELF" or sys.platform != "linux"
        archive.extract("gradwatch/kernels/_cpu.so", source / "unpacked")
    # What was packed is a kernel that passes its self-test.
    code = (
        "import pathlib, sys, torch; from gradwatch.kernels import library; "
        "kernel = library.load(pathlib.Path(sys.argv[1])); "
        "library.self_test(kernel, kernel.dtypes, torch.device('cpu'))"
    )
    path = source / "unpacked/gradwatch/kernels/_cpu.so"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_without_a_compiler_the_wheel_is_pure_and_says_so(source):
    wheel, said = build_wheel(source, "none")

    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no C compiler" in said
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "gradwatch/kernels/cpu.c" in names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: nothing to compile with")
def test_a_kernel_that_does_not_compile_leaves_a_pure_wheel_and_the_compilers_words(source):
    (source / "client/gradwatch/kernels/cpu.c").write_text("this is not C")

    wheel, said = build_wheel(source, "cc")

    assert wheel.name.endswith("-py3-none-any.whl")
    assert "did not compile" in said


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: nothing to compile with")
def test_the_kernel_is_free_of_warnings_and_of_fast_math(source):
    sys.path.insert(0, str(source))
    try:
        import hatch_build  # noqa: PLC0415 -- lies beside pyproject.toml, not on the path
    finally:
        sys.path.remove(str(source))
    strict = ["-Wall", "-Wextra", "-Werror"]
    command = ["cc", *hatch_build.FLAGS, *strict, "-o", str(source / "strict.so")]

    subprocess.run([*command, str(source / "client/gradwatch/kernels/cpu.c"), "-lm"], check=True)

    assert not {"-ffast-math", "-Ofast", "-ffinite-math-only"} & set(hatch_build.FLAGS)
