"""Series and tensors over REST, against the numbers that were posted."""

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import SIZES, TENSORS, get, post_run, random_norms

from gradwatch_service.queries.series import Pieces, bucketed


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here: each has runs of its own, or only reads."""
    with serving(tmp_path_factory.mktemp("series")) as served:
        yield served


@pytest.fixture(scope="module")
def posted(service):
    """A run of 500 steps with a spike at 321 and a step that was not finite at 77."""
    norms = random_norms(500)
    norms[321, 1] = 400.0
    nonfinite = np.zeros((500, 3), int)
    nonfinite[77] = [0, 5, 2]
    columns = {
        "norm": norms,
        "max_abs": norms / 2,
        "nonfinite_count": nonfinite,
        "clipped_count": np.tile([3, 0, 10], (500, 1)),
        "zero_count": np.tile([1, 2, 4], (500, 1)),
    }
    loss = np.linspace(3, 1, 500)
    loss[77] = np.nan
    post_run(service, "r", columns, scalars={"loss": loss, "my_own": np.arange(500)})
    return norms


def total(norms):
    return np.sqrt((norms**2).sum(axis=1))


def test_one_bucket_per_step_when_there_are_fewer_steps_than_points(service, posted):
    series = get(service, "runs/r/series", metric="global_norm")

    assert series["start_step"] == series["end_step"] == list(range(500))
    expected = total(posted).tolist()
    assert series["min"][77] is series["mean"][77] is series["max"][77] is None
    assert series["count"][77] == 0
    assert series["nonfinite_count"][77] == 7
    kept = [i for i in range(500) if i != 77]
    np.testing.assert_allclose(
        [series["mean"][i] for i in kept], [expected[i] for i in kept], rtol=1e-12
    )


@pytest.mark.parametrize("points", [1, 7, 100, 499])
def test_buckets_keep_the_extremes_and_the_mean(service, posted, points):
    series = get(service, "runs/r/series", metric="global_norm", points=points)
    finite = np.delete(total(posted), 77)

    assert len(series["mean"]) <= points
    assert series["start_step"][0] == 0
    assert series["end_step"][-1] == 499
    assert max(v for v in series["max"] if v is not None) == pytest.approx(finite.max(), rel=1e-12)
    assert min(v for v in series["min"] if v is not None) == pytest.approx(finite.min(), rel=1e-12)
    assert sum(series["count"]) == 499
    assert sum(series["nonfinite_count"]) == 7
    weighted = sum(m * c for m, c in zip(series["mean"], series["count"], strict=True) if c)
    assert weighted / 499 == pytest.approx(finite.mean(), rel=1e-12)


def test_start_and_end_are_steps_and_inclusive(service, posted):
    series = get(service, "runs/r/series", start=10, end=12)

    assert series["start_step"] == [10, 11, 12]


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ({"metric": "max_abs"}, lambda n: n[3].max() / 2),
        ({"metric": "clip_fraction"}, lambda n: 13 / SIZES.sum()),
        ({"metric": "zero_fraction"}, lambda n: 7 / SIZES.sum()),
        ({"metric": "loss"}, lambda n: 3 - 3 * 2 / 499),
        ({"metric": "my_own"}, lambda n: 3.0),
        ({"metric": "norm", "tensor": "head.weight"}, lambda n: n[3, 2]),
        ({"metric": "rms", "tensor": "head.weight"}, lambda n: n[3, 2] / 10),
        ({"metric": "clip_fraction", "tensor": "head.weight"}, lambda n: 0.1),
        ({"metric": "zero_fraction", "tensor": "encoder.1.weight"}, lambda n: 2 / 64),
        ({"metric": "global_norm", "group": "encoder.1"}, lambda n: n[3, 1]),
        ({"metric": "max_abs", "group": "head"}, lambda n: n[3, 2] / 2),
    ],
)
def test_every_metric_says_what_was_posted(service, posted, query, value):
    series = get(service, "runs/r/series", start=3, end=3, **query)

    assert series["mean"] == [pytest.approx(value(posted), rel=1e-6)]
    assert series["tensor"] == query.get("tensor")


def test_what_was_not_measured_is_null_and_not_zero(service, posted):
    series = get(service, "runs/r/series", metric="global_norm_after", start=0, end=1)

    assert series["mean"] == [None, None]
    assert series["count"] == [0, 0]
    assert get(service, "runs/r/series", metric="loss", start=77, end=77)["mean"] == [None]


def test_the_count_of_elements_that_were_not_finite_is_a_metric_of_every_step(service, posted):
    series = get(service, "runs/r/series", metric="nonfinite_count", start=76, end=78)

    assert series["max"] == [0, 7, 0]


def test_a_tensor_that_stayed_finite_keeps_its_value_where_another_did_not(service, posted):
    kept = get(service, "runs/r/series", metric="norm", tensor="encoder.0.weight", start=77, end=77)
    lost = get(service, "runs/r/series", metric="norm", tensor="encoder.1.weight", start=77, end=77)

    assert kept["mean"] == [pytest.approx(posted[77, 0])]
    assert lost["mean"] == [None]


@pytest.mark.parametrize(
    ("query", "at", "told"),
    [
        ({"metric": "nonsense"}, "metric", "global_norm"),
        ({"metric": "nonsense"}, "metric", "my_own"),
        ({"metric": "loss", "tensor": "head.weight"}, "metric", "cosine_previous"),
        ({"tensor": "nope"}, "tensor", "head.weight"),
        ({"group": "nope"}, "group", "encoder.1"),
        ({"start": 5, "end": 4}, "start", "end=4"),
        ({"points": 0}, "points", "1"),
        ({"optimizer": "nope"}, "optimizer", "default"),
        ({"tensor": "head.weight", "group": "head"}, "group", "not both"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_what_is_allowed(
    service, posted, query, at, told
):
    answer = service.http.get(service.api("runs/r/series"), params=query)

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["errors"][0]["at"] == at
    assert told in answer.json()["detail"]


@pytest.fixture(scope="module")
def long_run(service):
    """A run of 9000 steps, all but the newest compacted, with spikes of a single step."""
    norms = np.exp(np.random.default_rng(7).normal(0, 0.3, (9000, 1))).astype(np.float32)
    norms[[4000, 8999]] = [[77.0], [88.0]]
    nonfinite = np.zeros((9000, 1), int)
    nonfinite[5000] = 3
    columns = {"norm": norms, "nonfinite_count": nonfinite}
    tensors = [{"name": "w", "shape": [50]}]
    post_run(service, "long", columns, manifest={"tensors": tensors}, per_delivery=500)
    service.parts.store.maintenance.compact(quiet=True)
    return np.delete(norms[:, 0].astype(float), 5000)


@pytest.mark.parametrize("points", [1, 10, 97, 250, 4000])
@pytest.mark.parametrize(
    "query", [{"metric": "global_norm"}, {"metric": "norm", "tensor": "w"}], ids=["run", "tensor"]
)
def test_a_long_run_is_answered_from_roll_ups_without_losing_a_spike(
    service, long_run, query, points
):
    series = get(service, "runs/long/series", points=points, **query)

    assert len(series["max"]) <= points
    assert sum(series["count"]) == 8999
    assert sum(series["nonfinite_count"]) == 3
    assert series["start_step"][0] == 0
    assert series["end_step"][-1] == 8999
    assert all(
        a + 1 == b for a, b in zip(series["end_step"][:-1], series["start_step"][1:], strict=True)
    )
    assert series["max"][-1] == 88.0
    steps = np.delete(np.arange(9000), 5000)
    for start, end, low, mean, high in zip(
        *(series[k] for k in ("start_step", "end_step", "min", "mean", "max")), strict=True
    ):
        inside = long_run[(steps >= start) & (steps <= end)]
        assert (low, high) == (inside.min(), inside.max())
        assert mean == pytest.approx(inside.mean(), rel=1e-6)  # roll-ups keep float32 means


@pytest.mark.parametrize("seed", range(30))
def test_buckets_cover_every_step_once_whatever_the_pieces(seed):
    rng = np.random.default_rng(seed)
    gaps = rng.integers(1, rng.choice([2, 400]) + 1, 300)
    starts = np.cumsum(gaps * rng.integers(1, 4, 300))
    lengths = np.minimum(np.diff(starts, append=starts[-1] + 64), rng.integers(1, 65, 300))
    values = rng.normal(size=300)
    pieces = Pieces(
        start=starts,
        end=starts + lengths - 1,
        low=values,
        total=values * lengths,
        high=values,
        count=lengths,
        nonfinite=np.ones(300),
    )
    points = int(rng.integers(1, 299))

    found = {name: values.tolist() for name, values in bucketed(pieces, points).items()}

    assert len(found["count"]) <= points
    assert sum(found["count"]) == lengths.sum()
    assert sum(found["nonfinite_count"]) == 300
    assert (found["start_step"][0], found["end_step"][-1]) == (starts[0], pieces.end[-1])
    assert all(a <= b for a, b in zip(found["start_step"], found["end_step"], strict=True))
    assert [e + 1 for e in found["end_step"][:-1]] == found["start_step"][1:]
    assert np.nanmax(found["max"]) == values.max()
    for low, mean, high, count in zip(
        *(found[k] for k in ("min", "mean", "max", "count")), strict=True
    ):
        assert np.isnan(low) == np.isnan(mean) == (count == 0)
        assert count == 0 or low <= mean <= high


def test_part_of_a_long_run_is_cut_where_it_was_asked_for(service, long_run):
    series = get(service, "runs/long/series", start=10, end=8000, points=20)

    assert (series["start_step"][0], series["end_step"][-1]) == (10, 8000)
    assert sum(series["count"]) == 7990
    assert max(series["max"]) == 77.0


def test_a_run_without_steps_has_an_empty_series(service):
    service.http.put(service.api("runs/empty"), json={"tensors": list(TENSORS)})

    series = get(service, "runs/empty/series")

    assert series["start_step"] == series["min"] == series["count"] == []


def test_the_newest_attempt_wins_and_the_older_tail_can_be_asked_for(service):
    first, second = random_norms(100, 1), random_norms(50, 2)
    post_run(service, "again", {"norm": first}, session="one", finish=False)
    post_run(service, "again", {"norm": second}, session="two", first_step=60)

    newest = get(service, "runs/again/series")
    tail = get(service, "runs/again/series", attempt=0)

    assert newest["attempt"] == 1
    assert newest["start_step"] == list(range(110))
    np.testing.assert_allclose(newest["mean"][:60], total(first)[:60], rtol=1e-12)
    np.testing.assert_allclose(newest["mean"][60:], total(second), rtol=1e-12)
    np.testing.assert_allclose(tail["mean"], total(first), rtol=1e-12)
    assert service.http.get(service.api("runs/again/series?attempt=7")).status_code == 404


def test_tensors_give_every_statistic_at_the_newest_step_or_the_one_asked_for(service, posted):
    newest = get(service, "runs/r/tensors")
    then = get(service, "runs/r/tensors", step=3)

    assert newest["step"] == 499
    assert [i["name"] for i in then["items"]] == [t["name"] for t in TENSORS]
    head = then["items"][2]
    assert head["norm"] == pytest.approx(posted[3, 2])
    assert (head["numel"], head["group"], head["shape"]) == (100, "head", [10, 10])
    assert head["clip_fraction"] == pytest.approx(0.1)
    assert head["zero_count"] == 4


def test_tensors_at_a_step_that_was_not_reported_are_not_found(service, posted):
    answer = service.http.get(service.api("runs/r/tensors?step=500"))

    assert answer.status_code == 404
    assert "0 to 499" in answer.json()["detail"]


def test_two_optimizers_keep_their_steps_apart(service):
    known = {}
    for optimizer in ("critic", "generator"):
        tensors = [{"name": f"{optimizer}.weight", "shape": [4]}]
        body = {"tensors": tensors, "optimizer": optimizer, "session": "s"}
        known[optimizer] = service.http.put(service.api("runs/gan"), json=body).json()
    for sequence, (optimizer, norm) in enumerate((("critic", 9.0), ("generator", 1.0))):
        report = {
            "optimizer": optimizer,
            "sequence": sequence,
            "attempt": known[optimizer]["attempt"],
            "manifest": known[optimizer]["manifest"],
            "steps": [0, 1],
            "tensors": {"norm": [[norm], [norm]]},
        }
        answer = service.http.post(service.api("runs/gan/reports"), json=report)
        assert answer.status_code == 200, answer.text

    assert get(service, "runs/gan/series")["optimizer"] == "critic"
    assert get(service, "runs/gan/series", optimizer="generator")["mean"] == [1.0, 1.0]
    items = get(service, "runs/gan/tensors")["items"]
    assert {(i["optimizer"], i["norm"]) for i in items} == {("critic", 9.0), ("generator", 1.0)}
