"""``gradwatch exec``: a script that knows nothing of us is watched, and unchanged unless asked."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradwatch.clip import (
    adaptive,
    agc,
    chain,
    norm,
    published,
    recommended,
    spike_skip,
    value,
)
from gradwatch.clipping.adaptive import PREFERENCES
from gradwatch.errors import PolicyError
from gradwatch.injection import POLICIES, parse_clip
from gradwatch_cli.commands import exec as exec_command
from gradwatch_cli.errors import CommandError

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    def forward(self, x):
        return self.head(self.body(x).tanh())
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(5):
    optimizer.zero_grad()
    (100 * model(torch.ones(2, 4)).square().mean()).backward()
    optimizer.step()
    print("largest", step, max(float(p.grad.abs().max()) for p in model.parameters()))
print("weights", [p.flatten().tolist() for p in model.parameters()])
sys.exit(7)
"""
OWN = (
    'import gradwatch; gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.5), run="own")'
)


def start(tmp_path: Path, *before: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    file = tmp_path / f"train{len(list(tmp_path.glob('train*.py')))}.py"
    file.write_text(script)
    return subprocess.Popen(
        [*before, sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )


def plain() -> str:
    """What the script says without us."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        exec(SCRIPT, {"__name__": "plain"})  # noqa: S102 - the script above
    return said.getvalue()


def test_a_script_is_measured_unchanged_clipped_when_asked_and_left_alone_when_it_watches_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_MODE", "offline")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))
    run = [sys.executable, "-m", "gradwatch_cli", "exec"]
    own = SCRIPT.replace("for step", OWN + "\nfor step", 1)
    started = [
        start(tmp_path, *run, "--run", "measured", "--"),
        start(tmp_path, *run, "--clip", "value=0.5,norm=100", "--run", "clipped", "--"),
        start(tmp_path, *run, "--clip", "value=0.1", "--", script=own),
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [7] * 3, said
    measured, clipped, itself = said

    weights = [line for line in plain().splitlines() if line.startswith("weights")]
    assert weights[0] in measured
    assert "gradwatch: run measured" in measured
    assert "gradwatch: steps: 5" in measured
    assert re.search(r"mostly (body|head)\.(weight|bias)", measured)
    assert weights[0] not in clipped
    assert clipped.count(" 0.5\n") == 5
    assert "gradwatch: run own" in itself
    assert itself.count("gradwatch: steps: 5") == 1
    assert itself.count(" 0.5\n") == 5


@pytest.mark.parametrize(
    "clip",
    ["1.0", "vale=1", "value=", "value=-1", "value=nan", "value=1;norm=2"],
)
def test_a_clip_that_is_none_is_refused_before_anything_runs(clip: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        parse_clip(clip)
    touched = tmp_path / "ran"
    refused = subprocess.run(
        [
            sys.executable,
            "-m",
            "gradwatch_cli",
            "exec",
            "--clip",
            clip,
            "--",
            "touch",
            str(touched),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert repr(clip) in refused.stderr
    assert not touched.exists()


def test_policies_are_written_as_names_and_numbers() -> None:
    assert parse_clip(None) is None
    assert parse_clip("value=1.5") == value(1.5)
    assert parse_clip("value=1, norm=0.5") == chain(value(1.0), norm(0.5))
    assert parse_clip("agc") == agc()
    assert parse_clip("adaptive=guard") == adaptive(preference="guard")
    assert parse_clip("recommended=2") == recommended(norm(2.0))
    assert parse_clip("spike_skip=3,zclip") == chain(spike_skip(3), published.zclip())
    assert parse_clip("quantile=0.9") == published.quantile(0.9)


SPELLINGS = [
    f"{name}{value}"
    for name in POLICIES
    for value in (
        *("", "=", "=1", "=0.5", "=2.5", "=6", "=100", "=101", "=1e400", "=0", "=-1", "=nan", "=x"),
        *("=tight", "=guard"),
    )
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_command_refuses_exactly_what_the_training_would_refuse(spelling: str) -> None:
    try:
        policy = parse_clip(spelling)
    except PolicyError:
        policy = None
    if policy is not None:
        assert exec_command._checked(spelling) == spelling
        return
    with pytest.raises(CommandError, match="agc, value_rms=NUMBER, adaptive"):
        exec_command._checked(spelling)


def test_both_sides_know_the_same_names() -> None:
    assert list(exec_command.POLICIES) == list(POLICIES)
    assert tuple(PREFERENCES) == exec_command.PREFERENCES


def test_what_the_training_refuses_it_refuses_with_the_list_of_names() -> None:
    with pytest.raises(PolicyError, match=r"vale=1.*value, norm, per_tensor, agc.*quantile"):
        parse_clip("vale=1")
