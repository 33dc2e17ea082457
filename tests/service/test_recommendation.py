"""Recommendations over REST, for stored runs and for norms that are sent along."""

import math

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import TENSORS, get, post_run, random_norms

FIELDS = {
    "run", "policy", "threshold", "interval", "status", "effective_threshold", "spike_threshold",
    "reason", "reasons", "steps_used", "version", "valid_from_step", "backtest",
}  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here: each has runs of its own, or only reads."""
    with serving(tmp_path_factory.mktemp("recommendation")) as served:
        yield served


@pytest.fixture(scope="module")
def posted(service):
    norms = random_norms(300, 3)
    post_run(service, "r", {"norm": norms})
    return norms


def total(norms):
    return np.sqrt((np.asarray(norms, np.float32).astype(float) ** 2).sum(axis=1))


def test_a_stored_run_and_its_norms_sent_along_get_the_same_answer(service, posted):
    stored = get(service, "runs/r/recommendation", policy="norm", default=1.0, max=50)
    body = {"policy": "norm", "norms": total(posted).tolist(), "default": 1.0, "max": 50}

    sent = service.http.post(service.api("recommend"), json=body).json()

    assert set(stored) >= FIELDS
    assert stored["run"] == "r"
    assert stored["status"] == sent["status"] != "none"
    for name in ("threshold", "spike_threshold", "effective_threshold"):
        assert sent[name] == pytest.approx(stored[name], rel=1e-5)
    assert sent["interval"] == pytest.approx(stored["interval"], rel=1e-5)
    assert sent["backtest"] == pytest.approx(stored["backtest"], rel=1e-5)
    assert sent["reasons"] == stored["reasons"]
    assert sent["steps_used"] == stored["steps_used"] == 64


def test_norms_that_are_sent_along_leave_no_trace(service, posted):
    before = get(service, "runs")

    service.http.post(service.api("recommend"), json={"norms": [1.0, 2.0, 3.0]})

    assert get(service, "runs") == before


def test_a_step_that_was_not_finite_is_null_when_norms_are_sent_along(service):
    norms = random_norms(100, 5)[:, 0].tolist()
    with_gap = [*norms[:40], None, *norms[40:]]

    plain, gapped = (
        service.http.post(service.api("recommend"), json={"norms": n}).json()
        for n in (norms, with_gap)
    )

    assert gapped["threshold"] == plain["threshold"]


def test_a_loop_with_a_default_never_meets_null(service):
    run = service.api("runs/loop")
    for step in range(8):
        asked = service.http.get(f"{run}/recommendation?default=2.0&min=0.1&max=3.0")
        if step:
            assert 0.1 <= asked.json()["effective_threshold"] <= 3.0
        if step < 3:
            assert step == 0 or asked.json()["effective_threshold"] == 2.0
        body = {"step": step, "global_norm": 1.0 + 0.1 * (step % 3)}
        assert service.http.post(f"{run}/steps", json=body).status_code == 200

    assert get(service, "runs/loop/recommendation", default=2.0)["status"] == "provisional"


def test_a_recommendation_follows_at_once_what_was_stored(service):
    run = service.api("runs/quick/steps")
    for step in range(12):
        service.http.post(run, json={"step": step, "global_norm": 1.0 + step / 100})

    assert get(service, "runs/quick/recommendation")["valid_from_step"] == 12


@pytest.mark.parametrize(
    ("query", "at"),
    [
        ("policy=nonsense", "policy"),
        ("preference=loose", "preference"),
        ("min=2&max=1", "min"),
        ("default=0", "default"),
        ("default=nan", "default"),
        ("default=inf", "default"),
        ("default=5&max=2", "default"),
        ("min=-1", "min"),
        ("removed_energy=1.5", "removed_energy"),
        ("optimizer=nope", "optimizer"),
    ],
)
def test_contradictory_or_impossible_questions_are_refused_by_name(service, posted, query, at):
    answer = service.http.get(service.api(f"runs/r/recommendation?{query}"))

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["errors"][0]["at"] == at


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"norms": [-1.0]},
        {"norms": "many"},
        {"norms": [1.0], "policy": "value"},
        {"norms": [1.0], "unknown": 1},
        {"norms": [1.0], "min": 2, "max": 1},
        {"norms": [1.0, 2.0], "learning_rates": [0.1]},
        {"norms": [1.0], "default": 0},
    ],
)
def test_a_body_that_cannot_be_used_is_refused(service, body):
    assert service.http.post(service.api("recommend"), json=body).status_code == 422


def test_nan_in_a_body_is_a_problem_and_no_failure_of_the_service(service):
    answer = service.http.post(
        service.api("recommend"),
        content='{"norms": [NaN]}',
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 422


def test_an_unknown_run_is_not_found(service):
    assert service.http.get(service.api("runs/nobody/recommendation")).status_code == 404


def test_an_answer_that_is_held_already_is_not_sent_again(service, posted):
    first = service.http.get(service.api("runs/r/recommendation"))
    again = service.http.get(
        service.api("runs/r/recommendation"), headers={"If-None-Match": first.headers["etag"]}
    )
    other = service.http.get(
        service.api("runs/r/recommendation?max=0.01"),
        headers={"If-None-Match": first.headers["etag"]},
    )

    assert not first.headers["etag"].startswith("W/")
    assert "max-age" in first.headers["cache-control"]
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert other.status_code == 200


def test_tensors_get_thresholds_of_their_own_with_the_promise_they_kept(service, posted):
    given = get(service, "runs/r/recommendation", policy="per_tensor", default=1.0)

    assert set(given["thresholds"]) == {t["name"] for t in TENSORS}
    for column, one in enumerate(given["thresholds"].values()):
        window = posted[-64:, column]
        assert np.quantile(window, 0.1) / 2 < one["threshold"] <= 2.5 * np.median(window) * 1.0001
        assert one["interval"][0] <= one["threshold"] <= one["interval"][1]
        assert one["realised_steps"] == 64
        assert one["status"] in {"estimated", "validated"}
    shares = [one["realised_share"] for one in given["thresholds"].values()]
    assert given["realised_share"] == pytest.approx(np.mean(shares))
    limits = np.array([one["threshold"] for one in given["thresholds"].values()])
    tried, norms = given["backtest"], posted[-192:]
    kept = np.minimum(norms, limits)
    assert tried["steps"] == 192
    assert tried["clipped_share"] == pytest.approx(np.mean(norms > limits))
    assert tried["mean_coefficient"] == pytest.approx(np.mean(kept / norms))
    assert tried["norm_removed_share"] == pytest.approx(1 - kept.sum() / norms.sum())


def test_tensors_that_are_tightly_clipped_keep_their_promise(service, posted):
    given = get(service, "runs/r/recommendation", policy="per_tensor", preference="tight")

    for one in given["thresholds"].values():
        kept = abs(one["realised_share"] - 0.9) <= 0.15
        assert one["status"] == ("validated" if kept else "estimated")
    assert given["intended_share"] == pytest.approx(0.9)


def test_tensors_whose_norms_fall_for_good_break_the_promise_and_stay_estimated(service):
    falling = random_norms(260, 6, sigma=0.02) * np.exp(-0.01 * np.arange(260))[:, None]
    post_run(service, "falling", {"norm": falling})

    given = get(service, "runs/falling/recommendation", policy="per_tensor", preference="tight")

    for one in given["thresholds"].values():
        assert one["realised_share"] < 0.6
        assert one["status"] in {"provisional", "estimated"}


def test_a_tensor_whose_gradient_is_always_zero_is_named(service):
    norms = random_norms(60, 8)
    norms[:, 1] = 0.0
    post_run(service, "dead", {"norm": norms})

    given = get(service, "runs/dead/recommendation", policy="per_tensor", default=0.5)

    dead = given["thresholds"]["encoder.1.weight"]
    assert dead["threshold"] is None
    assert dead["reasons"] == ["tensor_all_zero"]
    assert dead["effective_threshold"] == 0.5
    assert given["thresholds"]["head.weight"]["threshold"] > 0


def test_the_ratio_is_learned_from_gradients_and_weights(service):
    norms = random_norms(200, 9)
    weights = np.full((200, 3), 10.0)
    post_run(service, "agc", {"norm": norms, "weight_norm": weights})
    largest = (norms / 10.0).max(axis=1)

    given = get(service, "runs/agc/recommendation", policy="agc", preference="tight")

    assert given["ratio"] == given["threshold"]
    assert np.quantile(largest[-64:], 0.05) < given["ratio"] < np.quantile(largest[-64:], 0.3)


def test_a_policy_without_its_data_says_so(service, posted):
    for policy in ("value", "agc"):
        given = get(service, "runs/r/recommendation", policy=policy, default=3.0)
        assert given["status"] == "none"
        assert given["reasons"] == ["unknown_policy_data"]
        assert given["effective_threshold"] == 3.0


def histogram(elements, bins=4):
    """Counts as the client makes them: 64 octaves from 2**-48."""
    with np.errstate(divide="ignore"):
        at = np.floor((np.log2(np.abs(elements)) + 48) * bins)
    return np.bincount(np.clip(at, 0, 64 * bins - 1).astype(int), minlength=64 * bins)


def exact_limit(elements, share):
    """Smallest limit that removes at most the share of the energy, from the elements."""
    squares = np.sort(np.abs(elements).astype(float)) ** 2
    low, high = 0.0, math.sqrt(squares[-1])
    for _ in range(200):
        middle = (low + high) / 2
        if 1 - np.minimum(squares, middle**2).sum() / squares.sum() <= share:
            high = middle
        else:
            low = middle
    return high


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_the_elementwise_limit_lies_within_its_stated_factor(service, shape, share):
    rng = np.random.default_rng(4)
    draw = rng.standard_normal if shape == "normal" else lambda n: rng.standard_t(3, n)
    elements = [draw(3 * 228).astype(np.float32).reshape(3, 228) for _ in range(64)]
    counts = [[histogram(t).tolist() for t in step] for step in elements]
    norms = np.array([[np.linalg.norm(t) for t in step] for step in elements])
    run = f"value-{shape}-{share}"
    post_run(
        service,
        run,
        {"norm": norms, "max_abs": [[np.abs(t).max() for t in step] for step in elements]},
        manifest={"tensors": [{"name": t["name"], "shape": [228]} for t in TENSORS]},
        histograms={
            "steps": list(range(64)),
            "bins_per_octave": 4,
            "lowest_exponent": -48,
            "sampled": 1.0,
            "counts": counts,
        },
    )
    given = get(service, f"runs/{run}/recommendation", policy="value", removed_energy=share)
    exact = exact_limit(np.concatenate([e.ravel() for e in elements]), share)

    assert given["error_factor"] == pytest.approx(2**0.25)
    assert exact / 2**0.25 <= given["threshold"] <= exact * 2**0.25
    assert given["interval"][0] <= exact * 1.0001
    assert exact <= given["interval"][1] * 1.0001
    kept = np.minimum(np.abs(np.concatenate(elements)), given["threshold"])
    removed = 1 - (kept**2).sum() / (np.concatenate(elements).astype(float) ** 2).sum()
    assert abs(removed - share) <= 0.01
    merged = get(service, f"runs/{run}/histogram", tensor=TENSORS[0]["name"])
    assert merged["steps"] == 64
    assert sum(merged["counts"]) == 64 * 228
    assert merged["counts"] == np.trim_zeros(np.sum([c[0] for c in counts], axis=0), "b").tolist()
