"""Lists of runs and the summary of one."""

import pytest
from tests.conftest import serving
from tests.service.recorded import TENSORS, get, post_run, random_norms


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with seven runs in two projects."""
    with serving(tmp_path_factory.mktemp("listing")) as served:
        for number in range(7):
            body = {
                "tensors": list(TENSORS),
                "project": "vision" if number % 2 else "default",
                "tags": {"lr": f"0.{number}"},
                "policy": {"kind": "value", "threshold": 1.0},
            }
            served.http.put(served.api(f"runs/run-{number}"), json=body)
        post_run(served, "done", {"norm": random_norms(20)}, first_step=5)
        yield served


def names(answer):
    return [item["run"] for item in answer["items"]]


def test_pages_hold_every_run_once_newest_first(service):
    whole, cursor = [], None
    for _ in range(10):
        page = get(service, "runs", limit=3, **({"cursor": cursor} if cursor else {}))
        whole += names(page)
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert whole == ["done", *(f"run-{n}" for n in reversed(range(7)))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"project": "vision"}, ["run-5", "run-3", "run-1"]),
        ({"project": "nobody's"}, []),
        ({"state": "finished"}, ["done"]),
        ({"q": "run-4"}, ["run-4"]),
        ({"q": "0.6"}, ["run-6"]),
    ],
)
def test_filters_keep_what_was_asked_for(service, query, expected):
    assert names(get(service, "runs", **query)) == expected


@pytest.mark.parametrize("query", ["limit=0", "limit=5000", "limit=many", "cursor=forged"])
def test_a_list_that_cannot_be_made_is_refused(service, query):
    assert service.http.get(service.api(f"runs?{query}")).status_code == 422


def test_a_summary_says_what_a_run_is_and_how_far_it_got(service):
    summary = get(service, "runs/done")

    assert summary["run"] == summary["name"] == "done"
    assert (summary["project"], summary["state"], summary["attempt"]) == ("default", "finished", 0)
    assert (summary["steps"], summary["first_step"], summary["last_step"]) == (20, 5, 24)
    assert summary["analysed_step"] == 24
    assert summary["open_incidents"] == 0
    assert summary["created_at"] <= summary["last_report_at"]
    assert summary["manifests"][0]["tensors"] == 3
    assert summary["manifests"][0]["elements"] == 228


def test_tags_and_policy_come_back_as_registered(service):
    summary = get(service, "runs/run-2")

    assert summary["tags"] == {"lr": "0.2"}
    assert summary["policy"] == {"kind": "value", "threshold": 1.0}
    assert summary["last_step"] is summary["analysed_step"] is None


def test_a_poller_gets_304_until_something_changes(service):
    held = service.http.get(service.api("runs/done")).headers["etag"]

    same = service.http.get(service.api("runs/done"), headers={"If-None-Match": f'"x", {held}'})
    service.http.patch(service.api("runs/done"), json={"note": "keep"})
    changed = service.http.get(service.api("runs/done"), headers={"If-None-Match": held})

    assert same.status_code == 304
    assert changed.status_code == 200
    assert changed.json()["note"] == "keep"
