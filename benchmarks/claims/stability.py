"""Claim 2: clipping keeps a training alive through faults."""

from benchmarks.claims.catalog import BAD_BATCH, BAD_RATE
from benchmarks.claims.figures import largest_rise
from benchmarks.claims.job import Outcome
from benchmarks.claims.readings import Experiments, lower, lower_by_ratio, more_often
from benchmarks.claims.text import letter_entropy
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "stability"]

BITS, RISE, SHARE = 0.1, 1.0, 0.0

RESTS_ON = ("text LSTM, SGD", "text LSTM, SGD, tuned with the fault")


def stability(found: Experiments) -> Claim:
    """Compare what is left of a text model after a wrong learning rate, and after a bad batch."""
    calm, warned = found["text LSTM, SGD"], found["text LSTM, SGD, tuned with the fault"]
    letters = letter_entropy()

    def survived(outcome: Outcome) -> bool:
        return outcome.score < letters

    bits, rise = "bits per character at the end", "largest rise of the loss, log2 of the ratio"
    alive = "share of runs that end better than letter frequencies alone"
    rate = "the learning rate is 30 times too high for 20 steps, unannounced"
    batch = "one batch comes with 1000 times its loss, unannounced"
    known = "the learning rate is 30 times too high for 20 steps and every arm was tuned for that"
    cases = [
        more_often(calm, rate, alive, SHARE, survived, fault=BAD_RATE),
        more_often(calm, batch, alive, SHARE, survived, fault=BAD_BATCH),
        lower_by_ratio(calm, rate, rise, RISE, largest_rise, fault=BAD_RATE),
        lower_by_ratio(calm, batch, rise, RISE, largest_rise, fault=BAD_BATCH),
        lower(calm, rate, bits, BITS, fault=BAD_RATE),
        lower(calm, batch, bits, BITS, fault=BAD_BATCH),
        lower(warned, known, bits, BITS, fault=BAD_RATE),
    ]  # fmt: skip
    chain, norm = ("value", "value + norm"), ("value", "norm")
    beside = [
        lower(calm, f"a norm cap is added: {rate}", bits, BITS, fault=BAD_RATE, arms=chain),
        lower(calm, f"the norm is clipped instead: {rate}", bits, BITS, fault=BAD_RATE, arms=norm),
        lower(warned, f"a norm cap is added: {known}", bits, BITS, fault=BAD_RATE, arms=chain),
        lower(warned, f"the norm is clipped instead: {known}", bits, BITS, fault=BAD_RATE, arms=norm),
    ]  # fmt: skip
    return Claim(
        title="Stability and spikes",
        said="Holding every element within limits keeps training stable: a bad step does not throw the weights away, the loss does not spike.",
        experiment="A character LSTM with SGD, tuned on calm training; then, half way, an unannounced fault: the learning rate 30 "
        "times too high for 20 steps, or one batch with its loss times 1000. And once more with every arm tuned under the first fault.",
        cases=cases,
        beside=beside,
        jobs=RESTS_ON,
    )  # fmt: skip
