"""Backtests of rules that find their own thresholds, against the client's policies on the same norms."""

import math

import numpy as np
import pytest
import torch
from tests.client.norm_streams import gradients_of_norm, recorded_like
from tests.conftest import serving
from tests.service.recorded import get, post_run, random_norms

from gradwatch import Clipper, clip

STEPS = 260
BAD = (40, 41, 130)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for all tests here."""
    with serving(tmp_path_factory.mktemp("rules")) as served:
        yield served


@pytest.fixture(scope="module")
def posted(service):
    """A run with spikes, a change of level, steps that were not finite, and a learning rate."""
    norms = random_norms(STEPS, 2) * np.array(recorded_like(STEPS))[:, None] / 3
    nonfinite = np.zeros((STEPS, 3), int)
    nonfinite[list(BAD), 0] = 1
    rates = np.where(np.arange(STEPS) < 200, 0.1, 0.01)
    columns = {"norm": norms, "nonfinite_count": nonfinite}
    post_run(service, "r", columns, scalars={"learning_rate": rates})
    series = get(service, "runs/r/series", metric="global_norm", points=STEPS)
    return [None if v is None else float(v) for v in series["mean"]], rates.tolist()


def ask(service, run="r", **body):
    answer = service.http.post(service.api(f"runs/{run}/backtest"), json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def clipped_by(policy, norms, rates):
    """What the client's policy makes of gradients with these norms; None stands for a NaN."""
    clipper, before, after = Clipper(policy), [], []
    for norm, rate in zip(norms, rates, strict=True):
        grads = gradients_of_norm(math.nan if norm is None else norm)
        stats = clipper.clip_(grads, learning_rate=rate).to_dict()
        if norm is not None:
            before.append(norm)
            after.append(stats["global_norm_after"])
    return np.array(before), np.array(after)


def check(result, before, after):
    factors = after / before
    expected = {
        "clipped_share": np.mean(factors < 1 - 1e-9),
        "mean_coefficient": factors.mean(),
        "norm_removed_share": 1 - after.sum() / before.sum(),
        "energy_removed_share": 1 - (after**2).sum() / (before**2).sum(),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ({"policy": "autoclip"}, clip.published.autoclip()),
        ({"policy": "zclip"}, clip.published.zclip()),
        ({"policy": "quantile"}, clip.published.quantile()),
        ({"policy": "adaptive"}, clip.adaptive()),
        ({"policy": "adaptive", "preference": "tight"}, clip.adaptive(preference="tight")),
        ({"policy": "adaptive", "preference": "guard"}, clip.adaptive(preference="guard")),
    ],
    ids=str,
)
def test_a_rule_does_to_the_record_what_the_clients_policy_would(service, posted, body, policy):
    norms, rates = posted
    before, after = clipped_by(policy, norms, rates)

    answer = ask(service, **body)

    (result,) = answer["results"]
    assert result["threshold"] is None
    assert result["steps"] == STEPS - len(BAD)
    assert (answer["first_step"], answer["last_step"]) == (0, STEPS - 1)
    assert np.any(after < before)
    check(result, before, after)


def test_adagc_works_tensor_by_tensor(service, posted):
    clipper, before, after = Clipper(clip.published.adagc()), [], []
    for step in range(STEPS):
        items = get(service, "runs/r/tensors", step=step)["items"]
        if any(item["nonfinite_count"] for item in items):
            continue
        norms = [item["norm"] for item in items]
        grads = [torch.tensor([0.6, 0.8], dtype=torch.float64) * norm for norm in norms]
        before += norms
        after += clipper.clip_(grads).to_dict()["norm_after"]

    check(ask(service, policy="adagc")["results"][0], np.array(before), np.array(after))


def test_a_part_of_the_record_is_a_record_of_its_own(service, posted):
    norms, rates = (values[100:180] for values in posted)
    before, after = clipped_by(clip.published.autoclip(), norms, rates)

    answer = ask(service, policy="autoclip", start=100, end=179)

    assert (answer["first_step"], answer["last_step"]) == (100, 179)
    check(answer["results"][0], before, after)


def test_incidents_that_it_would_have_touched_are_named(service):
    wild = random_norms(150, 9)
    wild[120:124] *= 200
    post_run(service, "wild", {"norm": wild})
    known = [i["id"] for i in get(service, "runs/wild/incidents", kind="exploding")["items"]]

    assert len(known) == 1
    for policy in ("adaptive", "autoclip", "zclip", "adagc", "quantile"):
        assert ask(service, "wild", policy=policy)["results"][0]["incidents"] == known, policy


@pytest.mark.parametrize("policy", ["adaptive", "autoclip", "zclip", "adagc", "quantile"])
def test_a_run_without_a_finite_step_is_answered_without_a_guess(service, policy):
    run = f"empty-{policy}"
    post_run(service, run, {"norm": np.zeros((2, 3)), "nonfinite_count": np.ones((2, 3), int)})

    answer = ask(service, run, policy=policy)

    assert answer["reasons"] == ["too_few_steps"]
    assert answer["results"][0]["steps"] == 0
    assert answer["results"][0]["clipped_share"] is None


def test_a_script_without_tensors_has_nothing_for_a_rule_on_tensors(service):
    body = [{"step": step, "global_norm": 1 + step % 3} for step in range(20)]
    assert service.http.post(service.api("runs/bare/steps"), json=body).status_code == 200

    by_tensor, joint = ask(service, "bare", policy="adagc"), ask(service, "bare", policy="autoclip")

    assert by_tensor["reasons"] == ["unknown_policy_data"]
    assert by_tensor["results"][0]["steps"] == 0
    assert joint["results"][0]["steps"] == 20


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"policy": "autoclip", "threshold": 1.0}, "threshold"),
        ({"policy": "adaptive", "thresholds": [1.0]}, "thresholds"),
        ({"policy": "zclip", "grid": 5}, "grid"),
        ({"policy": "autoclip", "preference": "tight"}, "preference"),
        ({"policy": "norm", "threshold": 1.0, "preference": "tight"}, "preference"),
        ({"policy": "adaptive", "preference": "loose"}, "preference"),
        ({"policy": "agc"}, "threshold"),
        ({"policy": "spam"}, "policy"),
    ],
    ids=str,
)
def test_a_rule_takes_no_threshold_and_says_so(service, posted, body, at):
    answer = service.http.post(service.api("runs/r/backtest"), json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["at"] == at
