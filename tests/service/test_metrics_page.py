"""docs/metrics.md says what the code does, and the code does what docs/metrics.md says."""

import re
from pathlib import Path

from tests.service.scraped import read

from gradwatch_service.exposition.page import Exposition, Limits
from gradwatch_service.exposition.template import ALL_SERIES
from gradwatch_service.exposition.tensor_page import MAX_TENSORS, TENSOR_FAMILIES
from gradwatch_service.instruments import REJECTION_REASONS, Instruments
from gradwatch_service.live.counts import MAX_GROUPS
from gradwatch_service.live.view import LiveView

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*) \| (.*) \|$", re.MULTILINE)


def documented():
    """Name to (type, labels, meaning) of every row of every table."""
    return {
        name: (kind, tuple(label for label in labels.split(", ") if label), text)
        for name, kind, labels, text in ROW.findall(PAGE)
    }


def implemented():
    """The same from the code."""
    usual = {"project", "run", "group"}
    known = {
        family.name: (family.kind, tuple(x for x in family.labels if x not in usual), family.text)
        for family in (series.family for series in ALL_SERIES)
    }
    known |= {f.name: ("gauge", (), f.text) for f in TENSOR_FAMILIES}
    instruments = Instruments()
    instruments.routes([("GET", "/metrics")])
    page = read(Exposition(LiveView(), instruments).body())
    for name, kind in page.kinds.items():
        if not name.startswith(("process_", "python_")):
            suffix = "_count" if kind == "histogram" else ""
            labels = [label for sample, _ in page.named(name + suffix)[:1] for label in sample]
            known[name] = (kind, tuple(labels), page.help[name])
    return known


def test_every_metric_is_documented_as_it_is_and_no_other():
    written, real = documented(), implemented()

    assert set(written) == set(real)
    for name, (kind, labels, text) in real.items():
        assert written[name][0] == kind, name
        assert set(written[name][1]) == set(labels), name
        assert written[name][2] == text, name


def test_the_limits_are_the_documented_ones():
    limits = Limits()

    assert f"{limits.series:,}".replace(",", " ") in PAGE
    assert f"`--max-series-per-run` | {limits.series_per_run} |" in PAGE
    assert f"groups of one run | {MAX_GROUPS} |" in PAGE
    assert f"at most {MAX_TENSORS} tensors" in PAGE
    assert ", ".join(REJECTION_REASONS) in PAGE
