"""Where the hook stands: after the gradients are there, once per step, and nowhere else."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.watching.hooks import StepHook, unwrap_optimizer


class Recorder:
    """Notes what the hook tells, with the gradient that was there."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.seen: list[tuple[int | None, float]] = []
        self.stepped = 0

    def on_gradients(self, optimizer: Optimizer, evaluation: int | None) -> None:
        assert self.parameter.grad is not None
        self.seen.append((evaluation, float(self.parameter.grad)))

    def on_stepped(self, optimizer: Optimizer) -> None:
        self.stepped += 1


def scalar() -> nn.Parameter:
    return nn.Parameter(torch.tensor(1.0))


def watched(optimizer: Optimizer, parameter: Tensor) -> tuple[Recorder, StepHook]:
    recorder = Recorder(parameter)
    return recorder, StepHook(optimizer, recorder)


def test_a_plain_step_is_seen_once_with_the_accumulated_gradient() -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    (2 * p).backward()
    (2 * p).backward()
    optimizer.step()
    assert recorder.seen == [(None, 4.0)]
    assert recorder.stepped == 1


@pytest.mark.parametrize("positional", [True, False])
def test_with_a_closure_the_gradient_of_this_step_is_seen_and_not_the_last_one(
    positional: bool,
) -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.0)
    recorder, _ = watched(optimizer, p)
    for step in range(1, 4):

        def closure(factor: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = factor * p
            loss.backward()
            return loss

        returned = optimizer.step(closure) if positional else optimizer.step(closure=closure)
        assert returned is not None
        assert returned.item() == step
    assert recorder.seen == [(0, 1.0), (0, 2.0), (0, 3.0)]
    assert recorder.stepped == 3


def test_a_closure_that_is_none_is_no_closure() -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    p.grad = torch.tensor(3.0)
    optimizer.step(None)
    optimizer.step(closure=None)
    assert recorder.seen == [(None, 3.0), (None, 3.0)]


def test_each_evaluation_of_lbfgs_is_seen_and_numbered() -> None:
    p = scalar()
    optimizer = torch.optim.LBFGS([p], max_iter=4, lr=0.1)
    recorder, _ = watched(optimizer, p)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p - 3) ** 4
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [number for number, _ in recorder.seen] == [0, 1, 2, 3]
    assert recorder.stepped == 1


def test_a_step_that_calls_its_parents_step_counts_once() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    p = scalar()
    torch.optim.SGD([scalar()], lr=0.1)  # torch wraps the parent's step when one is made
    optimizer = Twice([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    p.grad = torch.tensor(1.0)
    for _ in range(3):
        optimizer.step()
    assert len(recorder.seen) == recorder.stepped == 3


def test_after_a_step_that_raised_the_next_one_is_seen_again() -> None:
    class Fragile(torch.optim.SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise RuntimeError("out of memory")
            return super().step(closure)

    p = scalar()
    torch.optim.SGD([scalar()], lr=0.1)
    optimizer = Fragile([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    p.grad = torch.tensor(1.0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step()
    optimizer.broken = False
    optimizer.step()
    optimizer.step()
    assert len(recorder.seen) == 4
    assert recorder.stepped == 2


def test_removing_the_hook_leaves_the_optimizer_as_it_was() -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.1)
    recorder, hook = watched(optimizer, p)
    hook.remove()
    p.grad = torch.tensor(1.0)
    optimizer.step()
    assert recorder.seen == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_pickle_deepcopy_and_state_dict_know_nothing_of_the_hook() -> None:
    p = scalar()
    plain, optimizer = (torch.optim.Adam([p], lr=0.1) for _ in range(2))
    recorder, _ = watched(optimizer, p)
    saved, expected = io.BytesIO(), io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    torch.save(plain.state_dict(), expected)
    assert saved.getvalue() == expected.getvalue()
    unpickled = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own
    for copied in (copy.deepcopy(optimizer), unpickled):
        copied.param_groups[0]["params"][0].grad = torch.tensor(1.0)
        copied.step()
    assert recorder.seen == []
    optimizer.load_state_dict(plain.state_dict())
    p.grad = torch.tensor(1.0)
    optimizer.step()
    assert recorder.seen == [(None, 1.0)]


def test_a_learning_rate_schedule_changes_nothing_about_the_hook() -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    p.grad = torch.tensor(1.0)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert len(recorder.seen) == 3


def test_the_hook_goes_when_the_optimizer_goes() -> None:
    p = scalar()
    optimizer = torch.optim.SGD([p], lr=0.1)
    recorder, _ = watched(optimizer, p)
    gone = weakref.ref(recorder)
    del optimizer, recorder, _
    gc.collect()
    assert gone() is None


def test_wrappers_are_unwrapped_to_the_optimizer_inside() -> None:
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    inner = torch.optim.SGD([scalar()], lr=0.1)
    assert unwrap_optimizer(Wrapper(Wrapper(inner))) is inner
    assert unwrap_optimizer(inner) is inner
    nothing = object()
    assert unwrap_optimizer(nothing) is nothing
