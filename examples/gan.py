"""Two optimizers in one loop, each with its own statistics and its own policy by name pattern.

Run it with::

    python examples/gan.py
"""

import os

import torch
from torch import nn

import gradwatch

STEPS = int(os.environ.get("STEPS", "300"))


def main() -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    optimizers = {
        "generator": torch.optim.Adam(generator.parameters(), lr=1e-3),
        "critic": torch.optim.Adam(critic.parameters(), lr=1e-3),
    }
    clip = {"generator.*": gradwatch.clip.norm(1.0), "critic.*": gradwatch.clip.value(0.05)}

    with gradwatch.watch(both, optimizers, clip=clip) as watch:
        for _ in range(STEPS):
            real = torch.randn(64, 2) * 0.5 + torch.tensor([2.0, -1.0])
            fake = generator(torch.randn(64, 4))

            loss = critic(fake.detach()).mean() - critic(real).mean()
            optimizers["critic"].zero_grad()
            loss.backward()
            optimizers["critic"].step()

            loss = -critic(fake).mean()
            optimizers["generator"].zero_grad()
            loss.backward()
            optimizers["generator"].step()
            watch.log(generator_loss=loss)

        for name in optimizers:
            newest = watch.last(name)
            if newest is not None:
                print(f"{name}: global norm {newest.global_norm:.3g} at step {newest.step}")


if __name__ == "__main__":
    main()
