"""What the documents show is what happens: their Python and shell blocks run, their JSON parses."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.pages import PAGES, Block, blocks, name
from torch import nn

import gradwatch

LANGUAGES = {"python", "bash", "json", "toml", "yaml", "console", "text", "promql", "sql", "make", "dockerfile", "ini"}  # fmt: skip
PYTHON_PAGES = [
    page for page in PAGES if any(b.language in {"python", "bash"} for b in blocks(page))
]


class Classifier(nn.Module):
    """A small LSTM that says which of four classes a sequence belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(inputs)[0][:, -1])


def a_training() -> dict[str, Any]:
    """The names a page may take for granted."""
    torch.manual_seed(0)
    model = Classifier()
    return {
        "torch": torch,
        "nn": nn,
        "gradwatch": gradwatch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_function": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(4, 6, 8), torch.randint(0, 4, (4,))) for _ in range(40)],
    }


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, service_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADWATCH_URL", service_url)
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    torch.set_num_threads(1)
    namespace = {"__name__": f"docs.{page.stem}", **a_training()}
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            run_python(block, namespace)
        elif block.language == "bash":
            run_shell(block, service_url)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_names_its_language_and_data_parses(page):
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: {block.language!r} is no language we know"
        if block.language == "json":
            json.loads(block.code)
        if block.language == "toml":
            tomllib.loads(block.code)


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    # Empty lines in front make a traceback name the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
    exec(code, namespace)  # noqa: S102  running what the page shows is the point


def run_shell(block: Block, url: str) -> None:
    code = block.code.replace("http://127.0.0.1:8642", url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    where = f"{name(block.page)}:{block.line}"
    assert done.returncode == 0, f"{where} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    # A page may show what is refused, if it says so: the status then stands in the block.
    for status in re.findall(r'"status": ?(4\d\d)', done.stdout):
        assert status in block.code, f"{where}: {done.stdout}"
