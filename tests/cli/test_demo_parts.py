"""The pieces of the demo that can be judged without training anything."""

import math

import pytest
import torch

from gradwatch_cli.demo.chart import draw
from gradwatch_cli.demo.text import Batches, read_text
from gradwatch_cli.demo.troubles import Troubles


def rows_with(lines: list[str], mark: str) -> list[int]:
    return [row for row, line in enumerate(lines[:-2]) if mark in line.partition("|")[2]]


def test_a_single_spike_is_never_averaged_away():
    values = [1.0] * 1000
    values[617] = 50.0

    lines = draw({"o": values}, width=40, height=10, top=50.0, bottom=1.0)

    assert lines[0].count("o") == 1
    assert lines[9].count("o") == 39


def test_what_is_not_finite_is_not_drawn_and_breaks_nothing():
    lines = draw({"x": [1.0, math.nan, math.inf, 2.0]}, width=8, height=5, top=2.0, bottom=1.0)

    assert sum(line.count("x") for line in lines) == 4


def test_the_later_curve_is_drawn_over_the_earlier_one():
    lines = draw({"x": [1.0] * 8, "o": [1.0] * 8}, width=8, height=3, top=2.0, bottom=0.5)

    assert rows_with(lines, "o") == [1]
    assert rows_with(lines, "x") == []


def test_the_axis_names_both_edges_round_numbers_between_and_the_last_step():
    lines = draw({"o": [2.0] * 300}, width=20, height=12, top=9.2, bottom=1.4)

    assert [line.partition("|")[0].strip() for line in lines[:12] if line[6] != " "] == [
        "9.2",
        "5",
        "3",
        "2",
        "1.4",
    ]
    assert lines[-1].split() == ["0", "299"]


def test_the_text_is_split_by_file_and_known_characters_only(tmp_path):
    for number in range(40):
        tmp_path.joinpath(f"m{number:02}.py").write_text(f"# {number} é\n" + "x = 1\n" * 200)

    text = read_text(tmp_path)

    assert text.files == 40
    assert len(text.held_out) * 19 == pytest.approx(len(text.train), rel=0.01)
    assert int(text.train.min()) >= 0
    assert int(text.train.max()) < 96


def test_too_little_text_is_refused_with_what_was_found(tmp_path):
    tmp_path.joinpath("one.py").write_text("x = 1\n")

    with pytest.raises(FileNotFoundError, match="holds 6 characters"):
        read_text(tmp_path)


def test_the_same_seed_gives_the_same_batches_and_targets_follow_inputs():
    text = torch.arange(500) % 96
    first, again, other = (Batches(text, batch=4, length=8, seed=s).next() for s in (1, 1, 2))

    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal((first[0] + 1) % 96, first[1])


@pytest.mark.parametrize("steps", [160, 161, 600, 5000])
def test_troubles_leave_a_calm_stretch_before_between_and_after(steps):
    troubles = Troubles.within(steps)

    assert troubles.rate_step >= 64
    assert troubles.batch_step - (troubles.rate_step + troubles.rate_steps) >= 20
    assert steps - troubles.batch_step >= 20


def test_the_learning_rate_is_wrong_for_as_long_as_is_said():
    troubles = Troubles.within(600)

    wrong = [step for step in range(600) if troubles.learning_rate(step, 1.0) > 1.0]

    assert wrong == list(range(300, 308))
    assert troubles.sentences()[0].startswith("steps 300-307:")


def test_only_the_corrupted_batch_has_weights_that_are_not_finite():
    troubles = Troubles.within(600)

    bad = [step for step in range(600) if troubles.weights(step, 16) is not None]

    assert bad == [450]
    assert troubles.weights(450, 16).isinf().tolist() == [True] + [False] * 15
