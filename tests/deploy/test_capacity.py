"""The defaults carry 500 live runs of 32 groups, and a real Prometheus takes all of it."""

import numpy as np
import pytest
from tests.conftest import poll, serving
from tests.deploy.prometheus_server import prometheus
from tests.service.live_runs import count, manifest, record, rows

from gradwatch_service.rows import HistogramRows

RUNS, GROUPS = 500, 32


@pytest.mark.parametrize(
    "histograms",
    [
        pytest.param(False, id="without magnitudes"),
        pytest.param(True, id="with magnitudes", marks=pytest.mark.soak),
    ],
)
def test_prometheus_takes_500_runs_of_32_groups_and_nothing_is_dropped(tmp_path, histograms):
    with serving(tmp_path) as service:
        now = service.parts.live.clock()
        counters = count(_delivery(histograms), at=now)
        known = [record(f"run-{i}", counters=counters, created_at=now) for i in range(RUNS)]
        service.parts.live.restore(known)

        samples = _samples(service.http)

        # Without the rules: evaluating them every second is not what is tested here.
        address = service.base_url.removeprefix("http://")
        with prometheus(tmp_path, address, seconds=10 if histograms else 4, rules=False) as server:
            poll(lambda: server.value('up{job="gradwatch"}') == 1, 60)

            assert server.value('scrape_samples_scraped{job="gradwatch"}') >= samples
            assert server.value("count(gradwatch_group_gradient_norm)") == RUNS * GROUPS
            assert server.value("sum(gradwatch_series_dropped_total)") == 0
            assert server.value("gradwatch_series_exposed") > samples * 0.99


def _samples(http):
    page = http.get("/metrics").content
    return page.count(b"\n") - page.count(b"# HELP ") - page.count(b"# TYPE ")


def _delivery(histograms):
    tensors = manifest([f"layer.{i}" for i in range(GROUPS)], tensors_per_group=1)
    columns = {"clipped_count": 1, "zero_count": 1, "max_abs": 1.0, "cosine_previous": 0.1}
    scalars = {"loss": 1.0, "threshold": 1.0, "learning_rate": 0.1}
    given = rows(tensors, norm_after=0.5, weight_norm=2.0, scalars=scalars, **columns)
    if not histograms:
        return given
    counts = np.ones((1, GROUPS, 256), "u4")
    fields = {name: getattr(given, name) for name in given.__slots__}
    return type(given)(
        **fields | {"histograms": (HistogramRows(np.array([0]), 4, -48, 1.0, counts),)}
    )
