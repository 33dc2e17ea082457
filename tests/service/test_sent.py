"""Recommendations for numbers that are sent along: the answers a stored run would get, or a clear no."""

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import TENSORS, get, post_run, random_norms
from tests.service.test_recommendation import histogram

NAMES = [t["name"] for t in TENSORS]
SAME = ("threshold", "status", "reasons", "steps_used", "effective_threshold", "preference")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here."""
    with serving(tmp_path_factory.mktemp("sent")) as served:
        yield served


def send(service, **body):
    answer = service.http.post(service.api("recommend"), json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(sent, stored, names=SAME):
    for name in names:
        told, expected = sent.get(name), stored.get(name)
        words = isinstance(expected, str) or name == "reasons"
        assert told == (expected if words else pytest.approx(expected, rel=1e-5)), name
    assert sent["run"] is None


@pytest.mark.parametrize("preference", ["tight", "balanced", "guard"])
def test_norms_with_their_learning_rates_get_the_answer_of_the_stored_run(service, preference):
    norms, steps = random_norms(190, 1), np.arange(190)
    rates = np.where(steps < 175, 0.1, 0.5)
    run = f"rates-{preference}"
    norms[175:] *= 3
    post_run(service, run, {"norm": norms}, scalars={"learning_rate": rates}, finish=False)
    service.parts.analyser.wait(run, 10.0)
    stored = get(service, f"runs/{run}/recommendation", preference=preference)
    total = np.sqrt((norms**2).sum(axis=1)).tolist()

    sent = send(service, norms=total, learning_rates=rates.tolist(), preference=preference)

    assert "lr_changed" in sent["reasons"]
    same(sent, stored | {"reasons": sent["reasons"], "status": sent["status"]})
    assert set(sent["reasons"]) == set(stored["reasons"]) - {"open_incident"}


def test_tensors_get_the_thresholds_of_the_stored_run(service):
    norms = random_norms(230, 2)
    nonfinite = np.zeros(norms.shape, int)
    nonfinite[100] = 1
    present = np.ones(norms.shape, int)
    present[::7, 1] = 0
    norms[::7, 1] = 0.0
    columns = {"norm": norms, "nonfinite_count": nonfinite, "present": present}
    post_run(service, "tensors", columns)
    stored = get(service, "runs/tensors/recommendation", policy="per_tensor", default=1.0)
    by_name = {name: norms[:, i].tolist() for i, name in enumerate(NAMES)}
    for i, values in enumerate(by_name.values()):
        for step in range(len(norms)):
            if nonfinite[step, 0] or not present[step, i]:
                values[step] = None

    sent = send(service, policy="per_tensor", norms=by_name, default=1.0)

    same(sent, stored, ("status", "reasons", "steps_used", "realised_share", "backtest"))
    assert list(sent["thresholds"]) == NAMES
    for name in NAMES:
        mine, theirs = sent["thresholds"][name], stored["thresholds"][name]
        assert mine["threshold"] == pytest.approx(theirs["threshold"], rel=1e-5)
        assert mine["interval"] == pytest.approx(theirs["interval"], rel=1e-5)
        assert mine["status"] == theirs["status"]


def test_ratios_get_the_answer_of_the_stored_run(service):
    norms, weights = random_norms(140, 3), 10 + random_norms(140, 4)
    post_run(service, "ratios", {"norm": norms, "weight_norm": weights})
    stored = get(service, "runs/ratios/recommendation", policy="agc")

    sent = send(service, policy="agc", ratios=(norms / weights).max(axis=1).tolist())

    same(sent, stored, ("threshold", "ratio", "status", "reasons", "steps_used", "realised_share"))
    assert (stored["ratio_of"], sent["ratio_of"]) == ("tensors", "given")
    assert "usually more" in stored["reason"]
    assert "usually more" not in sent["reason"]


def test_magnitudes_get_the_answer_of_the_stored_run(service):
    rng = np.random.default_rng(5)
    elements = rng.standard_normal((70, 3, 228)).astype(np.float32)
    counts = [[histogram(t).tolist() for t in step] for step in elements]
    magnitudes = {"bins_per_octave": 4, "lowest_exponent": -48, "sampled": 1.0}
    post_run(
        service,
        "magnitudes",
        {"norm": np.linalg.norm(elements, axis=2)},
        per_delivery=70,
        manifest={"tensors": [{"name": name, "shape": [228]} for name in NAMES]},
        histograms={"steps": list(range(70)), "counts": counts, **magnitudes},
    )
    stored = get(service, "runs/magnitudes/recommendation", policy="value", removed_energy=0.05)
    together = np.sum(counts, axis=1)
    told = magnitudes | {"counts": [np.trim_zeros(row, "b").tolist() for row in together]}

    sent = send(service, policy="value", histograms=told, removed_energy=0.05)

    names = ("threshold", "interval", "status", "error_factor", "realised_share", "backtest")
    same(sent, stored, names)
    exact = send(
        service,
        policy="value",
        removed_energy=0.05,
        histograms=told | {"max_abs": np.abs(elements).max(axis=(1, 2)).tolist()},
    )
    assert exact["interval"][1] - exact["interval"][0] < sent["interval"][1] - sent["interval"][0]


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("SGD", "as if the learning rate were cut"),
        ("Nesterov", "as if the learning rate were cut"),
        ("AdamW", "hardly changes the step length"),
        ("Adadelta", "hardly changes the step length"),
        ("FusedLAMB", "normalises"),
        ("Lion", "signs"),
        ("SignSGD", "signs"),
        ("LBFGS", "curvature"),
        ("MyOwn", "not known here"),
        (None, None),
    ],
)
def test_the_advice_is_the_optimizers(service, optimizer, told):
    norms = (random_norms(80, 6, sigma=0.8)[:, 0]).tolist()
    sent = send(service, norms=norms, optimizer_class=optimizer, preference="tight")

    assert sent["backtest"]["mean_coefficient"] < 0.95
    assert sent["advice"] is None if told is None else told in sent["advice"]


def test_clipping_that_costs_nothing_is_no_cut_of_the_learning_rate(service):
    norms = random_norms(80, 7)[:, 0].tolist()
    sent = send(service, norms=norms, optimizer_class="SGD", preference="guard")

    assert sent["advice"] == "Under SGD this costs almost nothing of the step length."


HISTOGRAM = {"counts": [[1, 2]]}


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "norms"),
        ({"policy": "value", "norms": [1.0]}, "norms"),
        ({"policy": "value"}, "histograms"),
        ({"policy": "agc", "norms": [1.0]}, "norms"),
        ({"policy": "agc"}, "ratios"),
        ({"norms": [1.0], "ratios": [1.0]}, "ratios"),
        ({"norms": {"a": [1.0]}}, "norms"),
        ({"policy": "per_tensor", "norms": [1.0]}, "norms"),
        ({"policy": "per_tensor", "norms": {"a": [1.0], "b": [1.0, 2.0]}}, "norms"),
        ({"norms": [1.0, 2.0], "learning_rates": [0.1]}, "learning_rates"),
        ({"policy": "value", "histograms": {"counts": [[1] * 257]}}, "histograms.counts"),
        ({"policy": "value", "histograms": {"counts": [[1]] * 2, "max_abs": [1.0]}}, "histograms.max_abs"),
        ({"policy": "value", "histograms": {"counts": [[-1]]}}, "histograms.counts[0][0]"),
        ({"policy": "value", "histograms": HISTOGRAM | {"sampled": 0}}, "histograms.sampled"),
        ({"policy": "value", "histograms": HISTOGRAM | {"bins_per_octave": 3}}, "histograms.bins_per_octave"),
        ({"policy": "value", "histograms": HISTOGRAM, "removed_energy": 1}, "removed_energy"),
        ({"policy": "adaptive", "norms": [1.0]}, "policy"),
        ({"norms": [1.0], "min": 0}, "min"),
        ({"norms": [1.0], "default": 5, "max": 2}, "default"),
        ({"norms": [1e39]}, None),
        ({"norms": [[1.0]]}, None),
        ({"norms": ["1"]}, None),
        ({"norms": [True]}, None),
        ({"norms": [1.0], "default": True}, "default"),
        ({"norms": [1.0], "min": "0.5"}, "min"),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_cannot_be_used_are_refused_where_they_stand(service, body, at):
    answer = service.http.post(service.api("recommend"), json=body)

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert at is None or answer.json()["errors"][0]["at"] == at


@pytest.mark.parametrize(
    "body",
    [
        {"norms": []},
        {"norms": [None] * 30},
        {"policy": "per_tensor", "norms": {}},
        {"policy": "per_tensor", "norms": {"a": [], "b": []}},
        {"policy": "per_tensor", "norms": {"a": [None] * 30}},
        {"policy": "agc", "ratios": []},
        {"policy": "value", "histograms": {"counts": []}},
        {"policy": "value", "histograms": {"counts": [[], [], []]}},
        {"policy": "value", "histograms": {"counts": [[0, 0]] * 5}},
        {"norms": [0.0] * 40},
    ],
    ids=str,
)
def test_nothing_to_go_by_is_none_with_a_reason_and_the_default(service, body):
    sent = send(service, **body, default=2.5)

    assert (sent["status"], sent["threshold"], sent["effective_threshold"]) == ("none", None, 2.5)
    assert sent["reasons"] != ["ok"]
    assert sent["reason"]
