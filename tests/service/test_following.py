"""What travels with ingest answers is the kind of threshold that the job follows."""

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import TENSORS, get, post_run, random_norms
from tests.service.test_recommendation import histogram

from gradwatch_service.queries.following import followed_kind

AGC = {"kind": "recommended", "base": {"kind": "agc", "threshold": 0.01}, "interval": 50}
VALUE = {"kind": "recommended", "base": {"kind": "value", "threshold": 1.0}, "interval": 50}
NORM = {"kind": "recommended", "base": {"kind": "norm", "threshold": 1.0}, "interval": 50}


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (None, "norm"),
        ({"kind": "value", "threshold": 1.0}, "norm"),
        (NORM, "norm"),
        (VALUE, "value"),
        ({"kind": "chain", "policies": [VALUE, {"kind": "norm", "threshold": 5.0}]}, "value"),
        ({"kind": "chain", "policies": [{"kind": "value", "threshold": 5.0}, NORM]}, "norm"),
        ({"kind": "recommended", "base": 7}, "norm"),
        ({"kind": "chain", "policies": "odd"}, "norm"),
        (AGC, "agc"),
        ({"kind": "schedule", "steps": {"0": {"kind": "value"}, "100": AGC}}, "agc"),
        ({"kind": "patterns", "patterns": {"a*": None, "*": VALUE}}, "value"),
    ],
)
def test_the_kind_is_read_from_the_registered_policy(policy, kind):
    assert followed_kind(policy) == kind


def test_a_policy_nested_beyond_all_measure_is_no_trouble():
    policy = VALUE
    for _ in range(5000):
        policy = {"kind": "chain", "policies": [policy]}

    assert followed_kind(policy) == "norm"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here."""
    with serving(tmp_path_factory.mktemp("following")) as served:
        yield served


def newest(service, run):
    service.parts.analyser.wait(run, 10.0)
    return service.parts.analyser.recommendation(run)


def test_a_job_that_follows_an_elementwise_limit_is_sent_one(service):
    elements = np.random.default_rng(0).standard_normal((40, 3, 200)).astype(np.float32)
    post_run(
        service,
        "elements",
        {"norm": np.linalg.norm(elements, axis=2), "max_abs": np.abs(elements).max(axis=2)},
        manifest={
            "policy": VALUE,
            "tensors": [{"name": t["name"], "shape": [200]} for t in TENSORS],
        },
        histograms={
            "steps": list(range(40)),
            "bins_per_octave": 4,
            "lowest_exponent": -48,
            "sampled": 1.0,
            "counts": [[histogram(t).tolist() for t in step] for step in elements],
        },
    )

    sent = newest(service, "elements")

    assert sent["policy"] == "value"
    assert 1.5 < sent["threshold"] < 4.5
    asked = get(service, "runs/elements/recommendation", policy="value")
    assert (sent["threshold"], sent["version"]) == (asked["threshold"], asked["version"])


def test_every_other_job_is_sent_a_norm(service):
    post_run(service, "norms", {"norm": random_norms(80)})

    assert newest(service, "norms")["policy"] == "norm"


def test_a_restarted_job_never_sees_an_older_version(service):
    post_run(service, "again", {"norm": random_norms(100)}, session="one")
    before = newest(service, "again")["version"]
    post_run(service, "again", {"norm": random_norms(5)}, session="two", first_step=100)

    assert newest(service, "again")["version"] > before
