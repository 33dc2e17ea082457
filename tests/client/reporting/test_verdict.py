"""What an answer means."""

from email.utils import formatdate
from typing import Any

import pytest

from gradwatch.reporting.verdict import Action, judge_registration, judge_report

NOW = 1_795_000_000.0
STORED = b'{"stored": true, "sequence": 7, "steps": 2, "recommendation": null}'


def report(status: int, body: bytes = b"{}", **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge_report(status, given, body, sequence=7, now=NOW)


@pytest.mark.parametrize("stored", [b"true", b"false"])
def test_a_delivery_is_acknowledged_whether_new_or_repeated(stored: bytes) -> None:
    assert report(200, STORED.replace(b"true", stored)).action is Action.DONE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"<html>",
        b"[]",
        b"{}",
        b'{"stored": true}',
        b'{"stored": 1, "sequence": 7}',
        STORED.replace(b"7", b"8"),
        b"[" * 50_000,
    ],
)
def test_an_answer_that_does_not_name_the_delivery_acknowledges_nothing(body: bytes) -> None:
    assert report(200, body).action is Action.RETRY


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (404, b"{}", Action.REGISTER),
        (409, b'{"code": "manifest_unknown"}', Action.REGISTER),
        (409, b'{"code": "sequence_conflict"}', Action.DROP),
        (400, b"{}", Action.DROP),
        (413, b"{}", Action.DROP),
        (422, b"{}", Action.DROP),
        (401, b"{}", Action.STOP),
        (403, b"{}", Action.STOP),
        (410, b"{}", Action.STOP),
        (415, b"{}", Action.STOP),
        (408, b"{}", Action.RETRY),
        (429, b"{}", Action.RETRY),
        (500, b"{}", Action.RETRY),
        (502, b"<html>", Action.RETRY),
        (503, b"{}", Action.RETRY),
        (302, b"", Action.RETRY),
        (204, b"", Action.RETRY),
    ],
)
def test_each_status_leads_to_one_action(status: int, body: bytes, action: Action) -> None:
    assert report(status, body).action is action


def test_a_drop_says_why_in_the_words_of_the_wire() -> None:
    assert report(413).reason == "too_large"
    assert report(422, b'{"detail": "norm: -1 given"}').why == "answered 422: norm: -1 given"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("7", 7.0),
        ("7.5", 7.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(given: str, seconds: float) -> None:
    assert report(429, Retry_After=given).retry_after == pytest.approx(seconds, abs=1.0)


def test_a_date_is_read_by_the_services_own_clock() -> None:
    day = 86_400
    wrong = report(
        503,
        Date=formatdate(NOW + day, usegmt=True),
        Retry_After=formatdate(NOW + day + 5, usegmt=True),
    )
    assert wrong.retry_after == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize("attempt", ["null", "-1", "true", '"0"', "1.5", "99999999999"])
def test_a_registration_that_names_no_attempt_is_none(attempt: str) -> None:
    body = f'{{"attempt": {attempt}, "manifest": "x"}}'.encode()
    assert judge_registration(200, {}, body, now=NOW).action is Action.RETRY


def test_a_registration_names_the_attempt() -> None:
    verdict = judge_registration(201, {}, b'{"attempt": 3, "manifest": "x"}', now=NOW)
    assert (verdict.action, verdict.answer["attempt"]) == (Action.DONE, 3)
