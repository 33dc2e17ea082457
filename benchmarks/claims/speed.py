"""Claim 4: clipping makes training converge in fewer steps."""

from benchmarks.claims.readings import Experiments, sooner
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "speed"]

MARGIN = 0.15  # log2: a tenth fewer steps

WHERE = {
    "order, radius 0.95": "a tanh RNN with calm initial weights learns temporal order",
    "order, radius 2": "a tanh RNN with exploding initial weights learns temporal order",
    "text LSTM, SGD": "an LSTM learns text with SGD",
    "text tanh RNN, SGD": "a tanh RNN learns text with SGD",
    "text transformer, AdamW": "a transformer learns text with AdamW",
    "images, CNN, SGD": "a CNN learns images with SGD",
}
RESTS_ON = tuple(WHERE)


def speed(found: Experiments) -> Claim:
    """Count steps to the loss at which the unclipped arm has made nine tenths of its progress."""
    return Claim(
        title="Convergence speed",
        said="Clipping accelerates convergence, since it permits higher learning rates "
        "(Zhang et al. 2020, arXiv:1905.11881, on why clipping accelerates training).",
        experiment="Steps until the smoothed training loss has fallen by nine tenths of what the tuned unclipped arm "
        "achieves on the tuning seeds; each arm at its own best rate; not reached counts as one step more than all.",
        cases=[sooner(found[name], when, MARGIN) for name, when in WHERE.items()],
        beside=[
            sooner(found[name], f"the norm is clipped instead: {when}", MARGIN, ("none", "norm"))
            for name, when in WHERE.items()
        ],
        jobs=RESTS_ON,
    )
