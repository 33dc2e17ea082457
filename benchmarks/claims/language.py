"""Claim 5: recurrent nets and language models end better with clipping."""

from benchmarks.claims.readings import Experiments, lower
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "language"]

MARGIN = 0.02  # bits per character: about 1 %

WHERE = {
    "text LSTM, SGD": "an LSTM is trained with SGD",
    "text tanh RNN, SGD": "a tanh RNN is trained with SGD",
    "text LSTM, Adam": "an LSTM is trained with Adam",
}
RESTS_ON = tuple(WHERE)


def language(found: Experiments) -> Claim:
    """Compare bits per character on text that no training saw."""
    bits = "bits per character, held-out text"
    norm = ("none", "norm")
    return Claim(
        title="RNN and language generation",
        said="Recurrent nets and language models gain from it most: they train to a better model of the text "
        "(Mikolov 2012 clipped elements to train his recurrent language models).",
        experiment="Character models, 64 hidden units, on the language reference that comes with Python (0.46 million characters of "
        "English), 300 steps of 12 windows of 32 characters; no fault.",
        cases=[lower(found[name], when, bits, MARGIN) for name, when in WHERE.items()],
        beside=[
            lower(found[name], f"the norm is clipped instead: {when}", bits, MARGIN, arms=norm)
            for name, when in WHERE.items()
        ],
        jobs=RESTS_ON,
    )
