"""Jobs that are no recurrent nets: a small convolutional one, a GAN, and one without any noise."""

import itertools
import math
from dataclasses import dataclass, field

import torch
from benchmarks.claims.arms import Clip
from benchmarks.claims.job import Single
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Gan", "images", "ring", "ring_points", "valley"]

SIDE, CLASSES, BATCH = 10, 8, 16


def images(damaged: float, seed: int, rate: float) -> Single:
    """Tell eight shapes, shifted and in noise, with two convolutions; SGD with momentum.

    ``damaged``: share of images that come a hundred times too bright, in training only.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (SIDE // 2) ** 2, CLASSES),
    )
    generator = torch.Generator().manual_seed(5000 + seed)
    shapes = torch.randn(CLASSES, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    test = _pictures(1000, shapes, torch.Generator().manual_seed(8))

    def loss() -> Tensor:
        pictures, classes = _pictures(BATCH, shapes, generator)
        bright = torch.rand(BATCH, 1, 1, 1, generator=generator) < damaged
        return functional.cross_entropy(
            model(torch.where(bright, 100 * pictures, pictures)), classes
        )

    def measure() -> dict[str, float]:
        return {"score": float(functional.cross_entropy(model(test[0]), test[1]))}

    return Single(model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), loss, measure)


def _pictures(count: int, shapes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    classes = torch.randint(0, CLASSES, (count,), generator=generator)
    down, right = (int(torch.randint(-1, 2, (1,), generator=generator)) for _ in range(2))
    shifted = shapes[classes].roll((down, right), dims=(1, 2))
    return (shifted + 2 * torch.randn(shifted.shape, generator=generator))[:, None], classes


def valley(seed: int, rate: float) -> Single:
    """Fit 64 fixed points by a two-layer tanh net and full-batch gradient descent: no noise at all.

    ``turning``: share of steps of the second half whose gradient points against the one before.
    """
    model = nn.Sequential(
        nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
    )
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(6000 + seed)
    points = torch.randn(64, 4, generator=generator)
    targets = 2 * torch.sin(2 * points[:, :1]) * points[:, 1:2]
    gradients: list[Tensor] = []

    def loss() -> Tensor:
        found = functional.mse_loss(model(points), targets)
        # Taken before clipping, which must not hide that the slope has turned.
        raw = torch.autograd.grad(found, parameters, retain_graph=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in raw]))
        return found

    def measure() -> dict[str, float]:
        later = gradients[len(gradients) // 2 :]
        turned = [bool(a @ b < 0) for a, b in itertools.pairwise(later)]
        score = float(functional.mse_loss(model(points), targets))
        return {"score": score, "turning": sum(turned) / len(turned)}

    return Single(model, torch.optim.SGD(parameters, lr=rate), loss, measure)


@dataclass(slots=True)
class Gan:
    """A generator and a discriminator of points on a ring of eight Gaussians, both with Adam."""

    generator: nn.Module
    discriminator: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    random: torch.Generator
    usual: float
    steps: int = 0
    distances: list[float] = field(default_factory=list)

    def step(self, clip: Clip, rate: float, weight: float) -> float:
        """One step of each; the loss is the discriminator's."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.usual * rate
        made = self.generator(torch.randn(32, 4, generator=self.random))
        real = ring_points(32, self.random)
        apart = functional.softplus(-self.discriminator(real)).mean()
        apart = apart + functional.softplus(self.discriminator(made.detach())).mean()
        self._update(0, apart * weight, self.discriminator, clip)
        fooled = functional.softplus(-self.discriminator(made)).mean()
        self._update(1, fooled * weight, self.generator, clip)
        self.steps += 1
        if self.steps % 20 == 0:
            self.distances.append(self._distance())
        return float(apart.detach())

    def _update(self, which: int, loss: Tensor, model: nn.Module, clip: Clip) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        clip(list(model.parameters()))
        self.optimizers[which].step()

    def score(self) -> dict[str, float]:
        """Mean distance over the second half: a GAN swings, and its last step says little."""
        later = self.distances[len(self.distances) // 2 :]
        return {"score": sum(later) / len(later)}

    @torch.no_grad()
    def _distance(self) -> float:
        """Energy distance of 400 generated and 400 real points; 0 for equal distributions."""
        random = torch.Generator().manual_seed(9)
        made = self.generator(torch.randn(400, 4, generator=random))
        real = ring_points(400, random)
        between, within = torch.cdist(made, real).mean(), torch.cdist(made, made).mean()
        return float(2 * between - within - torch.cdist(real, real).mean())


def ring(seed: int, rate: float) -> Gan:
    """A fresh GAN."""
    generator = nn.Sequential(
        nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    discriminator = nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    made = tuple(
        torch.optim.Adam(model.parameters(), lr=rate, betas=(0.5, 0.999))
        for model in (discriminator, generator)
    )
    random = torch.Generator().manual_seed(7000 + seed)
    return Gan(generator, discriminator, (made[0], made[1]), random, rate)


def ring_points(count: int, random: torch.Generator) -> Tensor:
    """Points [count, 2] around eight places of the unit circle, deviation 0.05."""
    angle = torch.randint(0, 8, (count,), generator=random) * (math.pi / 4)
    centres = torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.05 * torch.randn(count, 2, generator=random)
