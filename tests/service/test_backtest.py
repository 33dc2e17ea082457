"""Backtests over REST against a recomputation from what /series and /tensors answer."""

import math

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import TENSORS, get, post_run, random_norms

from gradwatch_service.recommenders.backtest import backtest_norm

STEPS = 150


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here."""
    with serving(tmp_path_factory.mktemp("backtest")) as served:
        yield served


@pytest.fixture(scope="module")
def posted(service):
    """A run with a spike at 90 and a step that was not finite at 40."""
    norms = random_norms(STEPS, 2)
    norms[90] = [300.0, 1.0, 1.0]
    nonfinite = np.zeros((STEPS, 3), int)
    nonfinite[40, 0] = 1
    weights = np.tile(np.float32([1.0, 2.0, 4.0]), (STEPS, 1))
    columns = {"norm": norms, "nonfinite_count": nonfinite, "weight_norm": weights}
    post_run(service, "r", columns)
    return norms


def ask(service, run="r", **body):
    answer = service.http.post(service.api(f"runs/{run}/backtest"), json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_hand(values, norms, threshold):
    """The definitions, one step after the other, in Python's own floats."""
    coefficients = [min(1.0, threshold / v) if v > 0 else 1.0 for v in values]
    return {
        "clipped_share": sum(v > threshold for v in values) / len(values),
        "mean_coefficient": math.fsum(coefficients) / len(values),
        "norm_removed_share": 1
        - math.fsum(c * n for c, n in zip(coefficients, norms, strict=True)) / math.fsum(norms),
        "energy_removed_share": 1
        - math.fsum((c * n) ** 2 for c, n in zip(coefficients, norms, strict=True))
        / math.fsum(n**2 for n in norms),
    }


def check(result, expected):
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-11, abs=1e-13), name


@pytest.mark.parametrize("threshold", [0.1, 1.5, 1.73, 5.0, 1e6])
def test_a_norm_threshold_equals_the_recomputation_from_the_series(service, posted, threshold):
    series = get(service, "runs/r/series", metric="global_norm", points=STEPS)
    norms = [v for v in series["mean"] if v is not None]

    answer = ask(service, policy="norm", threshold=threshold)

    result = answer["results"][0]
    assert result["steps"] == len(norms) == STEPS - 1
    assert result["threshold"] == threshold
    check(result, by_hand(norms, norms, threshold))


@pytest.mark.parametrize("policy", ["per_tensor", "agc"])
def test_a_threshold_per_tensor_equals_the_recomputation_from_the_tensors(service, posted, policy):
    values, norms = [], []
    for step in range(STEPS):
        items = get(service, "runs/r/tensors", step=step)["items"]
        if any(i["nonfinite_count"] for i in items):
            continue
        for item in items:
            norms.append(item["norm"])
            values.append(item["norm"] / (max(item["weight_norm"], 1e-3) if policy == "agc" else 1))

    result = ask(service, policy=policy, threshold=0.4)["results"][0]

    assert result["steps"] == STEPS - 1
    check(result, by_hand(values, norms, 0.4))


@pytest.fixture(scope="module")
def resumed(service):
    """A job that was rewound: attempt 1 begins at step 60, long before attempt 0 ended."""
    first, second = random_norms(100, 11), 2 * random_norms(90, 12)
    nonfinite = np.zeros((90, 3), int)
    nonfinite[5, 1] = 2
    post_run(service, "resumed", {"norm": first}, session="one", finish=False)
    columns = {"norm": second, "nonfinite_count": nonfinite}
    post_run(service, "resumed", columns, session="two", first_step=60)
    return first, second


@pytest.mark.parametrize(
    ("attempt", "first", "last"), [(None, 0, 149), (1, 60, 149), (0, 0, 99)], ids=str
)
def test_a_rewound_job_is_tried_on_the_steps_that_count(service, resumed, attempt, first, last):
    chosen = {} if attempt is None else {"attempt": attempt}
    query = {"metric": "global_norm", "points": 1000, **chosen}
    series = get(service, "runs/resumed/series", **query)
    inside = [first <= step <= last for step in series["start_step"]]
    norms = [
        value
        for value, kept in zip(series["mean"], inside, strict=True)
        if kept and value is not None
    ]

    answer = ask(service, "resumed", policy="norm", threshold=2.0, **chosen)

    assert (answer["first_step"], answer["last_step"]) == (first, last)
    assert answer["results"][0]["steps"] == len(norms)
    check(answer["results"][0], by_hand(norms, norms, 2.0))


def test_several_thresholds_are_answered_in_the_order_they_were_asked(service, posted):
    several = ask(service, thresholds=[2.0, 0.5, 1.0])["results"]

    assert [r["threshold"] for r in several] == [2.0, 0.5, 1.0]
    assert several[1] == ask(service, threshold=0.5)["results"][0]


def test_a_grid_reaches_from_low_to_the_largest_norm(service, posted):
    results = ask(service, grid=9)["results"]
    shares = [r["clipped_share"] for r in results]

    assert len(results) == 9
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.95
    assert shares[-1] == 0.0


def test_a_threshold_at_a_norm_does_not_clip_it():
    assert backtest_norm(np.array([1.0, 2.0]), 2.0).clipped_share == 0.0


def test_only_the_steps_asked_for_count(service, posted):
    answer = ask(service, threshold=1.0, start=38, end=41)

    assert (answer["first_step"], answer["last_step"]) == (38, 41)
    assert answer["results"][0]["steps"] == 3


def test_incidents_whose_steps_would_have_been_clipped_are_named(service, posted):
    known = [i["id"] for i in get(service, "runs/r/incidents", kind="exploding")["items"]]

    touched, untouched = ask(service, thresholds=[10.0, 1e6])["results"]

    assert len(known) == 1
    assert touched["incidents"] == known
    assert untouched["incidents"] == []


def test_an_empty_record_is_answered_without_a_guess(service):
    service.http.put(service.api("runs/empty"), json={"tensors": list(TENSORS)})

    answer = ask(service, "empty", threshold=1.0)

    assert answer["reasons"] == ["too_few_steps"]
    assert answer["results"][0]["steps"] == 0
    assert answer["results"][0]["clipped_share"] is None


@pytest.mark.parametrize("policy", ["value", "agc"])
def test_a_policy_whose_data_were_not_reported_says_so(service, policy):
    run = f"plain-{policy}"
    post_run(service, run, {"norm": random_norms(10)})

    answer = ask(service, run, policy=policy, threshold=1.0)

    assert answer["reasons"] == ["unknown_policy_data"]
    assert answer["results"][0]["clipped_share"] is None


def test_a_limit_on_every_element_agrees_with_the_elements(service):
    rng = np.random.default_rng(1)
    elements = rng.standard_normal((40, 3, 5000)).astype(np.float32)
    at = np.clip(np.floor((np.log2(np.abs(elements)) + 48) * 4), 0, 255).astype(int)
    counts = [[np.bincount(t, minlength=256).tolist() for t in step] for step in at]
    post_run(
        service,
        "elements",
        {"norm": np.linalg.norm(elements, axis=2)},
        manifest={"tensors": [{"name": t["name"], "shape": [5000]} for t in TENSORS]},
        histograms={
            "steps": list(range(40)),
            "bins_per_octave": 4,
            "lowest_exponent": -48,
            "sampled": 1.0,
            "counts": counts,
        },
    )
    for threshold in (0.5, 1.0, 2.5):
        result = ask(service, "elements", policy="value", threshold=threshold)["results"][0]
        flat = np.abs(elements.astype(float))
        kept = np.minimum(flat, threshold)
        before, after = (np.sqrt((x**2).sum(axis=(1, 2))) for x in (flat, kept))
        assert result["steps"] == 40
        assert result["clipped_elements_share"] == pytest.approx(
            np.mean(flat > threshold), abs=0.01
        )
        assert result["energy_removed_share"] == pytest.approx(
            1 - (kept**2).sum() / (flat**2).sum(), abs=0.01
        )
        assert result["mean_coefficient"] == pytest.approx(np.mean(after / before), abs=0.01)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"threshold": 0},
        {"threshold": -1},
        {"threshold": 1, "thresholds": [1]},
        {"thresholds": []},
        {"thresholds": [1, 0]},
        {"grid": 1},
        {"threshold": 1, "policy": "nonsense"},
        {"threshold": 1, "start": 5, "end": 4},
        {"threshold": 1, "nonsense": 4},
        {"threshold": "high"},
        {"threshold": "1"},
        {"threshold": True},
        {"thresholds": [1.0, None]},
        [],
    ],
)
def test_a_question_that_makes_no_sense_is_refused(service, posted, body):
    answer = service.http.post(service.api("runs/r/backtest"), json=body)

    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "1e400"])
def test_a_threshold_that_is_not_finite_is_refused(service, posted, word):
    answer = service.http.post(
        service.api("runs/r/backtest"),
        content=f'{{"threshold": {word}}}',
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 422
