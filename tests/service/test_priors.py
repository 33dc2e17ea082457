"""Earlier runs of the same model speak for a new one, and are dropped when it disagrees."""

import math

import numpy as np
import pytest
from tests.conftest import serving
from tests.service.recorded import get, post_run, random_norms

from gradwatch_service.queries.recommendations import recommendation
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.norm import advance_norms, initial_state
from gradwatch_service.recommenders.prior import blended, learned


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Three runs of one model that ended well, one that exploded, one of another project."""
    with serving(tmp_path_factory.mktemp("priors")) as served:
        for seed in range(3):
            post_run(served, f"good-{seed}", {"norm": random_norms(60, seed)})
        wild = 50 * random_norms(60, 9)
        wild[50] *= 1000
        post_run(served, "wild", {"norm": wild})
        post_run(served, "theirs", {"norm": 9 * random_norms(60)}, manifest={"project": "other"})
        yield served


def ask(service, run, **query):
    return get(service, f"runs/{run}/recommendation", **query)


def begin(service, run, norms, **manifest):
    post_run(service, run, {"norm": norms}, manifest=manifest, finish=False)


def test_a_new_run_gets_a_provisional_threshold_from_earlier_ones(service):
    begin(service, "new", random_norms(2, 20))
    # Tight, because balanced starts lower than it ends: a prior speaks of runs at the same age.
    usual = [ask(service, f"good-{seed}", preference="tight")["threshold"] for seed in range(3)]

    given = ask(service, "new", prior=True, preference="tight")

    assert given["status"] == "provisional"
    assert sorted(given["prior"]["runs"]) == ["good-0", "good-1", "good-2"]
    assert given["prior"]["used"] is True
    assert min(usual) / 1.5 < given["threshold"] < max(usual) * 1.5
    assert given["interval"][0] < given["threshold"] < given["interval"][1]
    assert "3 earlier runs" in given["reason"]


def test_nobody_gets_a_prior_without_asking(service):
    begin(service, "plain", random_norms(2, 21))

    assert ask(service, "plain")["status"] == "none"


def test_a_run_that_disagrees_is_believed(service):
    begin(service, "different", 100 * random_norms(10, 22))

    given = ask(service, "different", prior=True)

    assert given["prior"]["used"] is False
    assert given["threshold"] == ask(service, "different")["threshold"]


def test_a_run_with_enough_norms_speaks_for_itself(service):
    begin(service, "old", random_norms(80, 23))

    assert ask(service, "old", prior=True)["prior"] is None


def test_runs_that_end_or_go_meanwhile_count_from_then_on(service):
    parts, now = service.parts, 1_800_000_000.0
    model = {"optimizer_class": "Lion"}
    begin(service, "early", random_norms(2, 26), **model)

    def runs_at(at):
        record = parts.store.run("early")
        given = recommendation(parts, record, "norm", Asked(), with_prior=True, now=at)
        return None if given["prior"] is None else given["prior"]["runs"]

    assert runs_at(now) is None
    post_run(service, "ends-later", {"norm": random_norms(60, 27)}, manifest=model)
    assert runs_at(now + 11) == ["ends-later"]
    assert service.http.delete(service.api("runs/ends-later")).status_code in {200, 204}
    assert runs_at(now + 22) is None


def test_another_project_and_another_optimizer_do_not_count(service):
    begin(service, "elsewhere", random_norms(2, 24), project="third")
    begin(service, "adam", random_norms(2, 25), optimizer_class="Adam")

    assert ask(service, "elsewhere", prior=True)["status"] == "none"
    assert ask(service, "adam", prior=True)["status"] == "none"


def test_own_norms_count_more_the_more_there_are():
    prior = learned([("a", np.full(32, 1.0)), ("b", np.full(32, 1.0))], age=8, preference="tight")
    found = []
    for n in (0, 4, 16, 31):
        norms = np.full(n, math.exp(0.2))
        state = advance_norms(
            initial_state(), np.arange(n), norms, np.ones(n, bool), np.full(n, np.nan)
        )
        found.append(math.log(blended(state, prior, "tight")[0]))

    assert found == pytest.approx([0.0, 0.2 * 4 / 20, 0.2 * 16 / 32, 0.2 * 31 / 47])
