"""Commands that ask a service, against a real one."""

import json

import pytest
from tests.conftest import serving
from tests.service.recorded import post_run, random_norms

from gradwatch_cli.commands.tail import events
from gradwatch_cli.main import run as gradwatch


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with one finished run that had a spike."""
    with serving(tmp_path_factory.mktemp("cli")) as served:
        norms = random_norms(120)
        norms[100, 2] = 300.0
        columns = {"norm": norms, "max_abs": norms / 2, "nonfinite_count": [[0, 0, 0]] * 120}
        post_run(served, "r", columns, manifest={"optimizer_class": "SGD"})
        counts = [[[0] * 190 + [0, 3, 9, 12, 6, 1]] * 3] * 40
        magnitudes = {"steps": list(range(40)), "bins_per_octave": 4, "lowest_exponent": -48}
        magnitudes |= {"sampled": 1.0, "counts": counts}
        columns = {"norm": random_norms(60), "weight_norm": 10 + random_norms(60, 1)}
        post_run(served, "v", columns, histograms=magnitudes)
        yield served


@pytest.fixture(autouse=True)
def _address(service, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # lines as they are, not as a narrow terminal breaks them
    monkeypatch.setenv("GRADWATCH_URL", service.base_url)
    monkeypatch.delenv("GRADWATCH_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs"], "finished"),
        (["show", "r"], "head.weight"),
        (["recommend", "r", "--default", "1.0"], "2.5 times the median"),
        (["recommend", "r", "--policy", "per_tensor"], "encoder.0.weight"),
        (["recommend", "v", "--policy", "value"], "meant to remove 1.0 % of the energy"),
        (["recommend", "v", "--policy", "value", "--removed-energy", "0.05"], "at most 5 %"),
        (["recommend", "v", "--policy", "agc"], "of a tensor"),
        (["backtest", "v", "--policy", "agc"], "coefficient"),
        (["backtest", "r"], "energy removed"),
        (["backtest", "r", "--policy", "autoclip"], "policy autoclip on 120 finite steps"),
        (["backtest", "r", "--policy", "adaptive", "--preference", "tight"], "clipped"),
        (["backtest", "r", "-t", "0.5", "-t", "1.0"], "0.5"),
        (["incidents", "r"], "exploding"),
        (["incidents", "r", "--kind", "nonfinite"], "no incidents"),
    ],
)
def test_a_command_tells_people_what_the_service_knows(capsys, arguments, told):
    assert gradwatch(arguments) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["runs"], "items"),
        (["show", "r"], "recommendation"),
        (["recommend", "r"], "threshold"),
        (["backtest", "r", "--grid", "4"], "results"),
        (["incidents", "r"], "items"),
    ],
)
def test_json_is_the_answer_and_nothing_else(capsys, arguments, key):
    assert gradwatch([*arguments, "--json"]) == 0
    assert key in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "nobody"], 1, "nobody"),
        (["recommend", "r", "--policy", "nonsense"], 2, "policy"),
        (["backtest", "r", "--policy", "zclip", "-t", "1"], 2, "finds its own"),
        (["recommend", "r", "--min", "2", "--max", "1"], 2, "min=2"),
        (["recommend", "r", "--optimizer", "x"], 2, "no optimizer 'x'"),
        (["backtest", "r", "-t", "0"], 2, "greater than 0"),
        (["backtest", "r", "-t", "1", "--grid", "3"], 2, "not both"),
        (["runs", "--url", "ftp://x"], 2, "no address"),
        (["runs", "--url", "http://127.0.0.1:9"], 1, "gradwatch serve"),
    ],
)
def test_a_failure_is_one_clear_line_and_an_exit_code(capsys, arguments, code, told):
    assert gradwatch(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_token_does_not_travel_unencrypted_to_another_machine(capsys, monkeypatch):
    monkeypatch.setenv("GRADWATCH_TOKEN", "secret")

    assert gradwatch(["runs", "--url", "http://example.invalid"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_events_are_read_with_comments_and_several_data_lines():
    lines = [": hello", "", "event: steps", 'data: {"a":', "data: 1}", "", "data: 2", ""]

    assert list(events(iter(lines))) == [("steps", {"a": 1}), ("message", 2)]
