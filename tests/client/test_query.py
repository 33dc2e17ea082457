"""The one question that a script asks the service."""

import pytest
from tests.conftest import serving
from tests.service.recorded import post_run, random_norms

import gradwatch


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with one run."""
    with serving(tmp_path_factory.mktemp("query")) as served:
        post_run(served, "r", {"norm": random_norms(100)})
        yield served


def test_a_script_gets_the_threshold_and_its_reason(service):
    advice = gradwatch.recommendation("r", url=service.base_url, maximum=0.5)

    assert advice["threshold"] > 0.5 == advice["effective_threshold"]
    assert "times the median" in advice["reason"]


def test_a_script_that_gives_a_default_never_meets_none(service):
    service.http.put(service.api("runs/new"), json={"tensors": []})

    for policy in ("norm", "value", "per_tensor", "agc"):
        advice = gradwatch.recommendation("new", policy, service.base_url, default=2.0)
        assert advice["effective_threshold"] == 2.0


def test_a_script_can_say_how_much_energy_and_which_optimizer(service):
    chosen = {"policy": "value", "removed_energy": 0.05, "optimizer": "default"}
    assert gradwatch.recommendation("r", url=service.base_url, **chosen)["removed_energy"] == 0.05
    with pytest.raises(gradwatch.QueryError, match="no optimizer 'other'"):
        gradwatch.recommendation("r", url=service.base_url, optimizer="other")


def test_an_unknown_run_is_an_error_with_status_and_code(service):
    with pytest.raises(gradwatch.QueryError, match="nobody") as refused:
        gradwatch.recommendation("nobody", url=service.base_url)

    assert (refused.value.status, refused.value.code) == (404, "unknown_run")


def test_a_service_that_is_not_there_is_an_error_that_names_the_address():
    with pytest.raises(gradwatch.QueryError, match=r"127\.0\.0\.1:9"):
        gradwatch.recommendation("r", url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy": "nonsense"},
        {"preference": "loose"},
        {"default": 0.0},
        {"minimum": float("nan")},
        {"removed_energy": 1.0},
        {"removed_energy": float("nan")},
    ],
)
def test_an_argument_that_is_not_allowed_is_named_before_anything_is_sent(arguments):
    with pytest.raises(gradwatch.QueryError, match="recommendation"):
        gradwatch.recommendation("r", url="http://127.0.0.1:9", **arguments)
