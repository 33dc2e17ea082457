"""Run id, session and rank: who decides, and how the others learn it."""

import pytest

from gradwatch.identity import identify
from gradwatch_wire import is_run_id


def test_a_run_without_a_name_gets_one_that_people_can_read() -> None:
    first = identify(run=None, name="LSTM demo/1", environment={})
    second = identify(run=None, name="LSTM demo/1", environment={})
    assert first.run.startswith("LSTM-demo-1-")
    assert is_run_id(first.run)
    assert first.run != second.run
    assert first.session != second.session


@pytest.mark.parametrize("name", ["", "äöü", "___", "-x-", "x" * 500])
def test_whatever_the_name_the_run_id_is_a_valid_one(name: str) -> None:
    assert is_run_id(identify(run=None, name=name, environment={}).run)


def test_a_run_that_was_asked_for_wins_over_torchruns() -> None:
    environment = {"TORCHELASTIC_RUN_ID": "elastic-7"}
    assert identify(run="mine", environment=environment).run == "mine"
    assert identify(run=None, environment=environment).run == "elastic-7"


def test_torchruns_default_none_is_no_run_id() -> None:
    run = identify(run=None, environment={"TORCHELASTIC_RUN_ID": "none"}).run
    assert run != "none"


def test_rank_and_world_size_come_from_the_launcher_before_a_process_group_exists() -> None:
    identity = identify(run="r", environment={"RANK": "2", "WORLD_SIZE": "4"})
    assert (identity.rank, identity.world_size) == (2, 4)
    for nonsense in ({}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        identity = identify(run="r", environment=nonsense)
        assert (identity.rank, identity.world_size) == (0, 1)


def test_tags_travel_as_text() -> None:
    assert identify(run="r", tags={"lr": 0.1, "seed": 3}, environment={}).tags == {
        "lr": "0.1",
        "seed": "3",
    }
