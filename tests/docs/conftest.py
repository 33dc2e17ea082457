"""A real service with one recorded run, for everything the documents say."""

import math
from collections.abc import Iterator

import httpx
import pytest

from gradwatch_cli.demo.service import running_service

RUN = "lstm-demo"
STEPS = 96


@pytest.fixture(scope="session")
def service_url() -> Iterator[str]:
    """The address of a service that knows the run ``lstm-demo``."""
    with running_service() as service:
        _record(service.url)
        yield service.url


def _record(url: str) -> None:
    """Register a run and report healthy steps with a slow wave in the norm."""
    runs = f"{url}/api/v1/runs/{RUN}"
    tensor = {"name": "rnn.weight_ih_l0", "shape": [64, 16], "dtype": "float32", "group": "rnn"}
    policy = {"kind": "value", "threshold": 1.0}
    manifest = {"name": RUN, "session": "docs", "policy": policy, "tensors": [tensor]}
    known = httpx.put(runs, json=manifest).raise_for_status().json()
    norms = [[0.7 + 0.1 * math.sin(step / 5)] for step in range(STEPS)]
    report = {
        "attempt": known["attempt"],
        "rank": 0,
        "optimizer": "default",
        "sequence": 0,
        "manifest": known["manifest"],
        "steps": list(range(STEPS)),
        "scalars": {"loss": [2.0 / (1 + step / 30) for step in range(STEPS)]},
        "tensors": {
            "norm": norms,
            "max_abs": [[norm / 4] for [norm] in norms],
            "clipped_count": [[0]] * STEPS,
            "zero_count": [[3]] * STEPS,
            "nonfinite_count": [[0]] * STEPS,
        },
    }
    httpx.post(f"{runs}/reports", json=report).raise_for_status()
