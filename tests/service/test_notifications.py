"""People hear of an incident once, however often it changes; a flood is counted, not sent."""

import http.server
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from tests.conftest import poll, serving
from tests.service.test_metrics import report

from gradwatch_service.notifications import Notifier, NotifyError, senders
from gradwatch_service.notifications.message import message_of

# Apprise imports it; ours to ignore until Apprise no longer does.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def incident(number=0, *, severity="critical", status="open", **fields):
    """An incident as the analyser tells it."""
    told = {
        "id": f"i{number}",
        "kind": "exploding",
        "severity": severity,
        "status": status,
        "onset_step": 411,
        "verdict": "global norm 46x its recent level, first in rnn.w",
        "why": "learning rate rose x30 at step 411",
        "next": "go back to the checkpoint before",
    }
    return SimpleNamespace(**told | fields)


def snapshot(*changed):
    """What the analyser tells."""
    return SimpleNamespace(changed=list(changed))


@pytest.fixture
def mailbox():
    """A real HTTP server that keeps what is posted, and fails as often as it is told to."""
    box = SimpleNamespace(messages=[], failures=0, attempts=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            box.attempts += 1
            failing = box.attempts <= box.failures
            if not failing:
                box.messages.append(json.loads(body))
            self.send_response(500 if failing else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    box.address = f"json://127.0.0.1:{server.server_port}/hook"
    yield box
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def notifier_of():
    """Makes started notifiers that wait for nothing, and stops them."""
    made = []

    def make(addresses, **options):
        counted = []
        options.setdefault("wait", lambda _: False)
        notifier = Notifier(senders(addresses), count=counted.append, **options)
        notifier.start()
        made.append(notifier)
        return notifier, counted

    yield make
    for notifier in made:
        notifier.stop()


def test_an_incident_is_told_once_however_often_it_is_revised(mailbox, notifier_of):
    notifier, counted = notifier_of([mailbox.address])

    for _ in range(3):
        notifier.analysed("lstm", snapshot(incident()))
    notifier.analysed("lstm", snapshot(incident(status="closed")))

    poll(lambda: counted == ["sent"])
    (message,) = mailbox.messages
    assert message["title"] == "gradwatch: run lstm: exploding since step 411 (critical)"
    assert "first in rnn.w" in message["message"]
    assert "learning rate rose x30" in message["message"]
    assert message["type"] == "failure"


def test_only_the_wanted_levels_are_told(mailbox, notifier_of):
    notifier, counted = notifier_of([mailbox.address], level="warning")

    notifier.analysed(
        "r",
        snapshot(incident(1, severity="info"), incident(2, severity="warning"), incident(3)),
    )

    poll(lambda: len(counted) == 2)
    assert {m["type"] for m in mailbox.messages} == {"warning", "failure"}


def test_a_message_that_does_not_arrive_is_tried_again(mailbox, notifier_of):
    mailbox.failures = 2
    pauses = []
    notifier, counted = notifier_of(
        [mailbox.address], wait=lambda seconds: pauses.append(seconds) or False
    )

    notifier.analysed("r", snapshot(incident()))

    poll(lambda: counted == ["sent"])
    assert pauses == [1.0, 5.0]
    assert len(mailbox.messages) == 1


def test_a_dead_address_is_given_up_counted_and_the_others_still_hear(mailbox, notifier_of):
    notifier, counted = notifier_of(["json://127.0.0.1:9/nobody", mailbox.address])

    notifier.analysed("r", snapshot(incident()))

    poll(lambda: counted == ["failed", "sent"])


def test_a_flood_is_limited_and_what_was_left_out_is_counted(mailbox, notifier_of):
    clock = SimpleNamespace(now=0.0)
    notifier, counted = notifier_of([mailbox.address], clock=lambda: clock.now)

    notifier.analysed("r", snapshot(*(incident(i) for i in range(50))))
    poll(lambda: len(counted) == 50)
    clock.now = 61.0
    notifier.analysed("r", snapshot(incident(99)))

    poll(lambda: counted.count("sent") == 11)
    assert counted.count("dropped") == 40


def test_a_slow_address_never_holds_up_the_analyser():
    held = threading.Event()
    notifier = Notifier([lambda _: held.wait(20)], clock=lambda: 0.0)
    notifier.start()

    notifier.analysed("r", snapshot(*(incident(i) for i in range(200))))

    held.set()
    notifier.stop()


def test_names_cannot_call_people_or_draw_links():
    said = message_of("r", incident(verdict="first in <!channel> @everyone `x`"))

    assert "@everyone" not in said.body
    assert "<" not in said.body
    assert "`" not in said.body


def test_an_address_that_nobody_understands_is_refused_without_repeating_its_secret():
    with pytest.raises(
        NotifyError, match=r"address 2 \(slak\) is none that Apprise understands"
    ) as raised:
        senders(["json://127.0.0.1/x", "slak://T0PSECRET/A/B"])

    assert "T0PSECRET" not in str(raised.value)


def test_a_wrong_address_ends_gradwatch_serve_with_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "gradwatch_cli",
        "serve",
        "--port",
        "0",
        "--notify",
        "nonsense",
    ]
    store = f"sqlite:///{tmp_path / 'x.db'}"

    done = subprocess.run(
        [*command, "--store", store], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "address 1" in done.stderr


def test_a_run_that_goes_wrong_is_a_message(tmp_path, mailbox):
    with serving(tmp_path, notify=(mailbox.address,)) as service:
        for sequence in range(40):
            bad = 5 if sequence > 30 else 0
            report(service.http, sequence, steps=[sequence], nonfinite_count=bad)

        poll(lambda: mailbox.messages)

    (message,) = mailbox.messages
    assert "run demo: nonfinite since step 31" in message["title"]
    assert "rnn.weight" in message["message"]
