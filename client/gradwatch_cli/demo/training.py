"""The training: one learner with gradwatch, and beside it the same one without clipping."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import gradwatch
from gradwatch_cli.demo.model import CharacterModel, bits_per_character
from gradwatch_cli.demo.text import ALPHABET, Batches, Text
from gradwatch_cli.demo.troubles import Troubles

__all__ = ["BATCH", "Learner", "Outcome", "train"]

BATCH = 16
LENGTH = 64
LEARNING_RATE = 2.0
MOMENTUM = 0.5
LARGEST_ELEMENT = 0.05  # value clipping: no element of a gradient beyond +-0.05
LARGEST_NORM = 0.25  # norm cap until the service recommends one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one learner has to show.

    Attributes:
        run: Its name on the service.
        clipped: False for the one that is only watched.
        losses: Nats per character, one per step.
        bits_per_character: On text that training never saw; NaN when the weights are lost.
    """

    run: str
    clipped: bool
    losses: list[float]
    bits_per_character: float


@dataclass(slots=True)
class Learner:
    """A model, its optimizer and its watch. Learners with one seed start with the same weights."""

    run: str
    clipped: bool
    model: CharacterModel
    optimizer: torch.optim.Optimizer
    watch: gradwatch.Watch
    losses: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, run: str, *, clipped: bool, seed: int, url: str) -> "Learner":
        """Build model and optimizer, and watch them: the one line a training job needs."""
        torch.manual_seed(seed)
        model = CharacterModel(len(ALPHABET))
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        clip = gradwatch.clip
        watch = gradwatch.watch(
            model,
            optimizer,
            clip=clip.chain(
                clip.value(LARGEST_ELEMENT),
                clip.recommended(clip.norm(LARGEST_NORM), minimum=0.01, maximum=1.0),
            )
            if clipped
            else None,
            nonfinite="skip" if clipped else "keep",
            run=run,
            project="demo",
            tags={"clipping": "on" if clipped else "off", "seed": str(seed)},
            url=url,
            mode="online",
            every=1,
        )
        return cls(run, clipped, model, optimizer, watch)

    def learn(self, batch: tuple[Tensor, Tensor], weights: Tensor | None, rate: float) -> None:
        """One step of stochastic gradient descent with momentum."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.model.loss(*batch, weights)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.optimizer.step()
        self.watch.log(loss=loss.detach())
        self.losses.append(loss.detach())

    def finish(self, held_out: Tensor) -> Outcome:
        """Measure on held-out text, close the watch, and say what came of it."""
        bits = bits_per_character(self.model, held_out)
        self.watch.close(timeout=30.0)
        return Outcome(self.run, self.clipped, [float(x) for x in self.losses], bits)


def train(
    learners: list[Learner],
    text: Text,
    troubles: Troubles,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, list[Learner]], None],
) -> list[Outcome]:
    """Give every learner the same batches and the same troubles, step by step.

    Args:
        learners: Trained side by side.
        text: What they read.
        troubles: What happens to them.
        steps: Optimizer steps.
        seed: Seed of the batches.
        on_step: Called after each step with its number, for the progress bar.

    Returns:
        One outcome for each learner, in the same order; their watches are closed.
    """
    batches = Batches(text.train, batch=BATCH, length=LENGTH, seed=seed)
    for step in range(steps):
        batch = batches.next()
        weights = troubles.weights(step, BATCH)
        rate = troubles.learning_rate(step, LEARNING_RATE)
        for learner in learners:
            learner.learn(batch, weights, rate)
        on_step(step, learners)
    return [learner.finish(text.held_out) for learner in learners]
