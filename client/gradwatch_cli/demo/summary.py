"""What the demo says at its end: the curves, and what the service saw."""

import math
import textwrap
import time
from dataclasses import dataclass
from typing import Any

from gradwatch_cli.demo.chart import draw
from gradwatch_cli.demo.service import DemoService
from gradwatch_cli.demo.training import Outcome
from gradwatch_cli.demo.troubles import Troubles
from gradwatch_cli.errors import CommandError

__all__ = ["Summary", "collect"]

CLIPPED, UNCLIPPED = "o", "x"
WIDTH = 100  # columns
ANALYSIS_SECONDS = 60.0  # far more than it takes; a machine may be busy with other things


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything the demo ends with. The incidents and thresholds are the service's own answers."""

    url: str
    troubles: Troubles
    outcomes: list[Outcome]
    incidents: dict[str, list[dict[str, Any]]]
    recommendations: dict[str, dict[str, Any]]
    clipped_steps: float | None

    @property
    def clipped_run(self) -> str:
        """The run that gradwatch clips."""
        return next(o.run for o in self.outcomes if o.clipped)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; a number that is not finite is null."""
        return {
            "url": self.url,
            "troubles": list(self.troubles.sentences()),
            "runs": [
                {
                    "run": o.run,
                    "clipped": o.clipped,
                    "steps": len(o.losses),
                    "losses": [_finite(x) for x in o.losses],
                    "bits_per_character": _finite(o.bits_per_character),
                    "incidents": self.incidents[o.run],
                }
                for o in self.outcomes
            ],
            "recommendations": self.recommendations,
        }

    def lines(self) -> list[str]:
        """The same as text."""
        return [
            *self._curves(),
            "",
            *self._results(),
            *self._incident_lines(),
            "",
            *self._threshold_lines(),
            "",
            *self._addresses(),
        ]

    def _curves(self) -> list[str]:
        # The clipped curve comes last and is drawn over the other.
        ordered = sorted(self.outcomes, key=lambda outcome: outcome.clipped)
        curves = {CLIPPED if o.clipped else UNCLIPPED: o.losses for o in ordered}
        finite = [x for values in curves.values() for x in values if math.isfinite(x)]
        # Beyond twice a model that knows nothing (ln 96 = 4.6) a curve only says: lost.
        top, bottom = min(max(finite), 9.2), min(finite)
        legend = f"{CLIPPED} gradwatch clips"
        if UNCLIPPED in curves:
            legend += f"   {UNCLIPPED} the same seed without clipping"
        plot = draw(curves, top=top, bottom=bottom)
        rate, batch = self.troubles.sentences()
        return [
            "Training loss (nats per character, log scale)",
            *plot,
            f"  {legend}",
            f"  {rate}",
            f"  {batch}",
        ]

    def _results(self) -> list[str]:
        lines = ["Held-out text, bits per character (lower is better; knowing nothing costs 6.58)"]
        for outcome in self.outcomes:
            how = "with gradwatch" if outcome.clipped else "without clipping"
            bits = outcome.bits_per_character
            lost = next((i for i, x in enumerate(outcome.losses) if not math.isfinite(x)), None)
            value = f"{bits:.2f}" if math.isfinite(bits) else "lost: the weights are not finite"
            since = (
                f" (loss not finite from step {lost})" if lost and not math.isfinite(bits) else ""
            )
            lines.append(f"  {how:<17} {value}{since}")
        return lines

    def _incident_lines(self) -> list[str]:
        lines: list[str] = []
        for run, incidents in self.incidents.items():
            lines += ["", f"Incidents in {run}" if incidents else f"No incident in {run}"]
            for incident in sorted(incidents, key=lambda item: item["opened_step"]):
                where = f", first in {incident['first_tensor']}" if incident["first_tensor"] else ""
                what = f"{incident['kind']} ({incident['severity']}){where}"
                lines.append(f"  step {incident['opened_step']:>4}  {what}")
                # The run that nobody clips is there to compare with: one line for each.
                lines += _explained(incident) if run == self.clipped_run else []
        return lines

    def _threshold_lines(self) -> list[str]:
        lines = ["Recommended thresholds"]
        for policy, answer in self.recommendations.items():
            threshold, interval = answer["threshold"], answer.get("interval")
            if threshold is None:
                lines.append(f"  {policy:<6} none yet ({', '.join(answer['reasons'])})")
                continue
            between = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
            use = f"gradwatch.clip.{policy}({threshold:.3g})"
            lines.append(f"  {policy:<6} {threshold:.3g}{between}  {answer['status']}: {use}")
            lines += _wrapped("         ", answer["reason"])
        if self.clipped_steps is not None:
            lines.append(f"  gradwatch clipped {self.clipped_steps:.0%} of the steps of this run")
        return lines

    def _addresses(self) -> list[str]:
        run = self.clipped_run
        return [
            "Look closer",
            f"  page             {self.url}/",
            f"  incidents        curl '{self.url}/api/v1/runs/{run}/incidents'",
            f"  threshold        curl '{self.url}/api/v1/runs/{run}/recommendation?policy=norm'",
            f"  for Prometheus   curl '{self.url}/metrics'",
        ]


def collect(service: DemoService, outcomes: list[Outcome], troubles: Troubles) -> Summary:
    """Ask the service what it saw of the runs that have ended, once it has looked at all of it."""
    for outcome in outcomes:
        _wait_until_analysed(service, outcome)
    run = next(o.run for o in outcomes if o.clipped)
    recommendations = {
        policy: service.get(f"/runs/{run}/recommendation?policy={policy}")
        for policy in ("norm", "value")
    }
    incidents = {
        o.run: service.get(f"/runs/{o.run}/incidents?limit=100")["items"] for o in outcomes
    }
    return Summary(
        service.url, troubles, outcomes, incidents, recommendations, _clipped_steps(service, run)
    )


def _wait_until_analysed(service: DemoService, outcome: Outcome) -> None:
    deadline = time.monotonic() + ANALYSIS_SECONDS
    last = len(outcome.losses) - 1
    while service.get(f"/runs/{outcome.run}")["analysed_step"] != last:
        if time.monotonic() > deadline:
            raise CommandError(f"the service did not finish its analysis of {outcome.run}")
        time.sleep(0.1)


def _explained(incident: dict[str, Any]) -> list[str]:
    lines = []
    for word, key in (("seen", "verdict"), ("why", "why"), ("next", "next")):
        if incident.get(key):
            lines += _wrapped(f"             {word + ':':<5} ", incident[key])
    return lines


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _clipped_steps(service: DemoService, run: str) -> float | None:
    """Share of steps on which clipping changed anything; None when it was not measured."""
    series = service.get(f"/runs/{run}/series?metric=clip_fraction&points=10000")
    shares = [x for x in series["max"] if x is not None]
    return sum(x > 0 for x in shares) / len(shares) if shares else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
