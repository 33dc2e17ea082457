"""torch.compile: a compiled step is clipped like any other; fullgraph is refused with the way out."""

from typing import Any

import pytest
import torch
from torch import nn

import gradwatch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns about its own internals
LIMIT = 0.01


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = nn.Linear(4, 4)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def backward(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (100 * model(torch.ones(2, 4))).sum().backward()


def largest(model: nn.Module) -> float:
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("watched_first", [True, False])
def test_a_compiled_step_is_clipped_whether_watched_before_or_after(watched_first: bool) -> None:
    model, optimizer = build()
    step: Any = torch.compile(optimizer.step, backend="eager")
    if not watched_first:
        backward(model, optimizer)
        step()
    clip = gradwatch.clip.schedule(
        {0: gradwatch.clip.value(LIMIT), 2: gradwatch.clip.value(2 * LIMIT)}
    )
    watch = gradwatch.watch(model, optimizer, clip=clip, mode="disabled")
    limits = []
    for _ in range(4):
        backward(model, optimizer)
        step()
        limits.append(largest(model))
    assert limits == pytest.approx([LIMIT, LIMIT, 2 * LIMIT, 2 * LIMIT])
    assert (watch.health().steps, watch.health().errors) == ({"default": 4}, 0)


def test_a_whole_compiled_training_step_keeps_its_weights_and_is_clipped() -> None:
    final = []
    for compiled in (False, True):
        model, optimizer = build()
        gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(LIMIT), mode="disabled")

        def train(x: torch.Tensor, model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

        run: Any = torch.compile(train, backend="eager") if compiled else train
        for _ in range(3):
            run(torch.ones(2, 4))
        final.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))


def test_fullgraph_is_refused_with_the_way_out_and_the_way_out_works() -> None:
    model, optimizer = build()
    watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(LIMIT), mode="disabled")
    whole: Any = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    backward(model, optimizer)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"watch\.step\(\)"):
        whole()
    watch.close()
    alone = gradwatch.watch(model, clip=gradwatch.clip.value(LIMIT), mode="disabled")

    def update(parameters: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        torch._foreach_sub_(parameters, torch._foreach_mul(grads, 0.1))

    # torch breaks the graph in its own optimizers too; an update that is one graph looks like this.
    fused: Any = torch.compile(update, backend="eager", fullgraph=True)
    for _ in range(3):
        backward(model, optimizer)
        alone.step()
        parameters = list(model.parameters())
        with torch.no_grad():
            fused(parameters, [p.grad for p in parameters])
        assert largest(model) == pytest.approx(LIMIT)
    assert alone.health().steps == {"default": 3}
