"""Every job with its grids: what is trained, tuned on which values, and run under what."""

from functools import partial

from benchmarks.claims.job import CALM, Fault, Job
from benchmarks.claims.noise import bowl
from benchmarks.claims.order import orthogonal, radius, remembering, temporal_order
from benchmarks.claims.plain import images, ring, valley
from benchmarks.claims.text import Model, Transformer, characters
from torch import nn

__all__ = ["BAD_BATCH", "BAD_RATE", "FOURFOLD", "JOBS", "SAME_LIMIT"]

BAD_RATE = Fault("learning rate x30 for 20 steps", steps=20, rate=30.0)
BAD_BATCH = Fault("one batch with its loss x1000", steps=1, weight=1000.0)
SAME_LIMIT = Fault("both as the symmetric arm was tuned", like="value")
FOURFOLD = Fault("four times the best unclipped rate", unclipped_rate=4.0)

GUESSING = 6.585  # bits: log2(96), a model of text that knows nothing
ALL = ("none", "value", "norm", "value + norm")


def _text(
    name: str, model: object, optimizer: str, rates: tuple[float, ...], **more: object
) -> Job:
    make = partial(characters, model, optimizer)
    limits = {"values": (0.003, 0.02, 0.1), "norms": (0.1, 0.3, 1.0)}
    return Job(name, make, 300, rates, worst=GUESSING, **(limits | more))


def _order(name: str, length: int, start: object, cell: type[nn.RNNBase], **more: object) -> Job:
    make = partial(temporal_order, length, start, cell=cell)
    settings = {"values": (0.01, 0.03, 0.1), "norms": (0.1, 0.3, 1.0), "worst": 0.75}
    settings |= {"steps": 500, "rates": (0.01, 0.03, 0.1, 0.3)}
    return Job(name, make, **(settings | more))


def _bowl(name: str, noise: str) -> Job:
    return Job(
        name,
        make=partial(bowl, noise),
        steps=500,
        rates=(0.03, 0.06, 0.12, 0.24),
        values=(0.3, 3.0, 30.0),
        norms=(1.0, 1.0, 1.0),
        worst=100.0,
        arms=("value", "max-only"),
        finals=(CALM, SAME_LIMIT),
    )


LSTM, RNN = partial(Model, nn.LSTM), partial(Model, nn.RNN)
# Adam undoes a scale, so that far smaller limits can be of use.
ADAM = {"values": (0.0001, 0.001, 0.1), "norms": (0.003, 0.03, 3.0)}
SGD_RATES = (0.25, 0.5, 1.0, 2.0)

JOBS = {
    job.name: job
    for job in (
        _bowl("bowl, symmetric noise", "symmetric"),
        _bowl("bowl, normal noise", "normal"),
        _bowl("bowl, skewed noise", "skewed"),
        _text(
            "text LSTM, SGD", LSTM, "SGD", SGD_RATES,
            arms=(*ALL, "max-only"), finals=(CALM, BAD_RATE, BAD_BATCH),
        ),
        _text(
            "text LSTM, SGD, tuned with the fault", LSTM, "SGD", (0.02, 0.08, 0.32, 1.28),
            arms=ALL, tuned_under=BAD_RATE, finals=(BAD_RATE,), values=(0.0005, 0.002, 0.01), norms=(0.03, 0.1, 0.3),
        ),
        _text("text tanh RNN, SGD", RNN, "SGD", (0.1, 0.2, 0.4, 0.8)),
        _text("text LSTM, Adam", LSTM, "Adam", (0.005, 0.01, 0.02, 0.04), **ADAM),
        _text("text transformer, AdamW", Transformer, "AdamW", (0.001, 0.003, 0.01, 0.03), **ADAM),
        _order("order, radius 0.95", 20, partial(radius, 0.95), nn.RNN, finals=(CALM, FOURFOLD)),
        _order("order, radius 2", 20, partial(radius, 2.0), nn.RNN, finals=(CALM, FOURFOLD)),
        _order("order, radius 0.5, length 40", 40, partial(radius, 0.5), nn.RNN, steps=200),
        _order("order, orthogonal, length 40", 40, orthogonal, nn.RNN, steps=200, arms=("none",)),
        _order("order, LSTM, length 40", 40, remembering, nn.LSTM, steps=200, arms=("none",)),
        Job(
            "full batch, tanh net", valley, 300, (0.03, 0.1, 0.3, 1.0), (0.01, 0.03, 0.1),
            (0.1, 0.3, 1.0), 4.0, finals=(CALM, FOURFOLD),
        ),
        Job(
            "images, CNN, SGD", partial(images, 0.0), 300, (0.001, 0.003, 0.01, 0.03),
            (0.03, 0.1, 0.3), (1.0, 3.0, 10.0), 2.08,
        ),
        Job(
            "images, CNN, SGD, damaged images", partial(images, 0.02), 300, (1e-5, 1e-4, 1e-3, 1e-2),
            (0.03, 0.1, 0.3), (1.0, 3.0, 10.0), 2.08,
        ),
        Job(
            "ring, GAN, Adam", ring, 400, (0.001, 0.003, 0.009, 0.027), (0.001, 0.01, 0.1),
            (0.03, 0.3, 3.0), 3.0,
        ),
    )
}  # fmt: skip
