"""``gradwatch.watch``: the one line, its options and its handle."""

import copy
import gc
import inspect
import io
import logging
import pickle
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwatch
from gradwatch.errors import PolicyError, WatchError


def task(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def backward(model: nn.Module, scale: float = 100.0) -> Tensor:
    loss = scale * model(torch.ones(2, 4)).square().mean()
    model.zero_grad()
    loss.backward()
    return loss.detach()


def largest(model: nn.Module) -> float:
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


def quiet(model: Any = None, optimizer: Any = None, **options: Any) -> gradwatch.Watch:
    return gradwatch.watch(model, optimizer, mode="disabled", **options)


def test_the_signature_is_the_contracts() -> None:
    parameters = inspect.signature(gradwatch.watch).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    assert defaults == {
        "model": None,
        "optimizer": None,
        "clip": None,
        "every": 1,
        "run": None,
        "project": None,
        "name": None,
        "tags": None,
        "url": None,
        "mode": None,
        "include": None,
        "exclude": None,
        "groups": None,
        "nonfinite": "keep",
        "scaler": None,
        "spool": None,
        "histogram_every": 10,
        "stop_on": None,
        "on_incident": None,
        "gates": False,  # ours, beyond the contract
    }
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "optimizer"]


def test_the_one_line_clips_from_the_next_step_on_even_when_its_result_is_dropped() -> None:
    model, optimizer = task()
    gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.5), mode="disabled")
    gc.collect()
    backward(model)
    assert largest(model) > 0.5
    optimizer.step()
    assert largest(model) == 0.5


def test_a_bare_number_is_refused_with_both_meanings_named() -> None:
    model, optimizer = task()
    with pytest.raises(PolicyError, match=r"clip\.value.*clip\.norm"):
        quiet(model, optimizer, clip=1.0)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"mode": "loud"}, "mode='loud'"),
        ({"run": "no spaces"}, "run='no spaces'"),
        ({"stop_on": {"nan": 3}}, "stop_on="),
        ({"stop_on": {"nonfinite": 0}}, "stop_on="),
        ({"nonfinite": "drop"}, "nonfinite='drop'"),
        ({"include": [1]}, "include="),
        ({"histogram_every": -1}, "histogram_every=-1"),
    ],
)
def test_an_option_out_of_range_is_refused_and_named(options: dict[str, Any], message: str) -> None:
    model, optimizer = task()
    with pytest.raises((WatchError, PolicyError), match=message):
        gradwatch.watch(model, optimizer, **{"mode": "disabled", **options})
    assert not optimizer._optimizer_step_pre_hooks


def test_nothing_to_watch_and_what_is_no_optimizer_are_refused() -> None:
    with pytest.raises(WatchError, match="nothing to watch"):
        quiet()
    with pytest.raises(WatchError, match=r"watch\.step\(\)"):
        quiet(nn.Linear(1, 1), object())


def test_watching_again_replaces_so_that_nothing_is_clipped_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = task()
    first = quiet(model, optimizer, clip=gradwatch.clip.value(0.5))
    with caplog.at_level(logging.WARNING, "gradwatch"):
        second = quiet(model, optimizer, clip=gradwatch.clip.value(2.0))
    assert len(caplog.records) == 1
    assert "watched again" in caplog.text
    backward(model)
    optimizer.step()
    assert largest(model) == 2.0
    assert (first.health().clipping, second.health().clipping) == (False, True)
    assert first.health().steps == {"default": 0}


def test_detach_and_close_leave_the_optimizer_as_it_was() -> None:
    model, optimizer = task()
    for end in ("detach", "close"):
        watch = quiet(model, optimizer, clip=gradwatch.clip.value(0.5))
        getattr(watch, end)()
        assert not optimizer._optimizer_step_pre_hooks
        backward(model)
        optimizer.step()
        assert largest(model) > 0.5


def test_a_closed_watch_says_so_once_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = task()
    with quiet(model, optimizer) as watch:
        pass
    with caplog.at_level(logging.WARNING, "gradwatch"):
        for _ in range(3):
            watch.log(loss=1.0)
            watch.step()
    watch.close()
    assert watch.flush(0.1)
    assert len(caplog.records) == 1
    assert "closed Watch" in caplog.text


def test_several_optimizers_are_counted_and_clipped_apart() -> None:
    (g, opt_g), (d, opt_d) = task(0), task(1)
    both = nn.ModuleDict({"g": g, "d": d})
    watch = quiet(both, {"G": opt_g, "D": opt_d}, clip=gradwatch.clip.value(0.5))
    backward(both["g"])
    backward(both["d"])
    opt_d.step()
    opt_d.step()
    opt_g.step()
    assert watch.health().steps == {"G": 1, "D": 2}
    assert largest(g) == largest(d) == 0.5


def test_an_error_inside_never_reaches_the_loop_and_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer, clip=gradwatch.clip.value(0.5))

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug in gradwatch")

    monkeypatch.setattr(watch.tracked[0].clipper, "clip_", fail)
    before = model[0].weight.detach().clone()  # type: ignore[union-attr]  # a Linear
    with caplog.at_level(logging.WARNING, "gradwatch"):
        for _ in range(3):
            backward(model)
            untouched = largest(model)
            optimizer.step()
            assert largest(model) == untouched
    assert not torch.equal(before, model[0].weight)  # type: ignore[arg-type]  # a Linear
    assert len(caplog.records) == 1
    assert "a bug in gradwatch" in caplog.text
    health = watch.health()
    assert (health.errors, health.clipping) == (1, False)


def test_a_step_under_cuda_graph_capture_is_left_alone_with_the_way_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer, clip=gradwatch.clip.value(0.5))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    backward(model)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        optimizer.step()
    assert largest(model) > 0.5
    assert "watch.step()" in caplog.text
    assert not watch.health().clipping


def test_watching_without_a_policy_changes_no_bit() -> None:
    final = []
    for watched in (False, True):
        model, optimizer = task()
        if watched:
            quiet(model, optimizer)
        for step in range(50):
            backward(model, scale=0.1 * step)
            optimizer.step()
        final.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))


def test_a_loop_without_an_optimizer_calls_step() -> None:
    model, _ = task()
    watch = quiet(model, clip=gradwatch.clip.value(0.5))
    for _ in range(2):
        backward(model)
        watch.step()
        assert largest(model) == 0.5
    assert watch.health().steps == {"default": 2}


def test_an_explicit_step_and_the_hook_after_it_are_one_step() -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer, clip=gradwatch.clip.norm(0.5))
    for _ in range(3):
        backward(model)
        watch.step()
        optimizer.step()
    assert watch.health().steps == {"default": 3}


def test_the_threshold_in_force_can_be_read() -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer, clip=gradwatch.clip.schedule({0: 1.0, 1: 0.25}))
    assert watch.threshold is None
    seen = []
    for _ in range(2):
        backward(model)
        optimizer.step()
        seen.append(float(watch.threshold))  # type: ignore[arg-type]  # a tensor after a step
    assert seen == [1.0, 0.25]


def test_frozen_and_absent_gradients_and_unfreezing_need_nothing_from_the_user() -> None:
    model, optimizer = task()
    model[0].requires_grad_(False)  # type: ignore[union-attr]  # a Linear
    watch = quiet(model, optimizer, clip=gradwatch.clip.norm(0.5))
    backward(model)
    optimizer.step()
    model[0].requires_grad_(True)  # type: ignore[union-attr]  # a Linear
    backward(model)
    optimizer.step()
    model[2].bias.grad = None  # type: ignore[union-attr]  # a Linear
    optimizer.step()
    stats = watch.tracked[0].stats
    assert stats is not None
    assert [t.name for t in watch.tracked[0].layout.tensors] == [
        "2.weight", "2.bias", "0.weight", "0.bias",
    ]  # fmt: skip
    assert stats.present.tolist() == [1, 0, 1, 1]
    assert watch.health().errors == 0


def test_unrelated_model_and_optimizer_are_named_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = task()
    with caplog.at_level(logging.WARNING, "gradwatch"):
        quiet(nn.Linear(1, 1), optimizer, clip=gradwatch.clip.value(0.5))
    assert "no parameter in common" in caplog.text
    backward(model)
    optimizer.step()
    assert largest(model) == 0.5


def test_checkpoints_pickles_and_copies_of_model_and_optimizer_know_nothing_of_us() -> None:
    (plain_model, plain), (model, optimizer) = task(), task()
    quiet(model, optimizer, clip=gradwatch.clip.value(1e9))
    for each, by in ((plain_model, plain), (model, optimizer)):
        backward(each)
        by.step()
    saved, expected = io.BytesIO(), io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], saved)
    torch.save([plain_model.state_dict(), plain.state_dict()], expected)
    assert saved.getvalue() == expected.getvalue()
    unpickled = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301 - our own
    for twin, twin_optimizer in (copy.deepcopy((model, optimizer)), unpickled):
        assert not twin_optimizer._optimizer_step_pre_hooks
        torch.save(twin, io.BytesIO())


def test_a_watch_in_a_pickled_trainer_becomes_a_closed_one() -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer)
    twin = pickle.loads(pickle.dumps({"watch": watch}))["watch"]  # noqa: S301 - our own
    assert twin.run == watch.run
    assert not twin.health().clipping
    twin.log(loss=1.0)


def test_state_goes_through_weights_only_loading_and_steps_go_on() -> None:
    model, optimizer = task()
    watch = quiet(model, optimizer, clip=gradwatch.clip.norm(0.5))
    for _ in range(3):
        backward(model)
        optimizer.step()
    saved = io.BytesIO()
    torch.save(watch.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    model, optimizer = task()
    resumed = quiet(model, optimizer, clip=gradwatch.clip.norm(0.5))
    resumed.load_state_dict(state)
    backward(model)
    optimizer.step()
    assert resumed.health().steps == {"default": 4}


def test_state_of_another_policy_or_world_size_is_named_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = task()
    state = quiet(model, optimizer, clip=gradwatch.clip.norm(0.5)).state_dict()
    state["world_size"] = 8
    other = quiet(model, optimizer)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        other.load_state_dict(state)
        other.load_state_dict({"optimizers": {"another": {}}})
    assert "8 ranks" in caplog.text
    assert "starts afresh" in caplog.text
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_nothing_is_kept_alive_after_the_last_reference_is_gone(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    threads = threading.active_count()
    model, optimizer = task()
    watch = gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.norm(0.5), mode=mode, spool=tmp_path / "spool"
    )
    backward(model)
    optimizer.step()
    gone = [weakref.ref(each) for each in (model, optimizer, watch)]
    del model, optimizer, watch
    gc.collect()
    assert [each() for each in gone] == [None, None, None]
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_a_watch_that_nobody_has_a_name_for_lives_as_long_as_its_optimizer() -> None:
    model, optimizer = task()
    alive = weakref.ref(quiet(model, optimizer))
    gc.collect()
    assert alive() is not None


@pytest.mark.parametrize("watched", ["sparse", "complex"])
def test_sparse_and_complex_gradients_are_clipped_and_measured(watched: str) -> None:
    model: nn.Module = nn.Embedding(10, 4, sparse=True)
    if watched == "complex":
        model = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = quiet(model, optimizer, clip=gradwatch.clip.value(0.5))
    if watched == "sparse":
        model(torch.tensor([1, 1, 2])).sum().backward()
    else:
        model(torch.ones(2, 4, dtype=torch.complex64)).abs().sum().backward()
    optimizer.step()
    (grad,) = [p.grad for p in model.parameters()]
    assert grad is not None
    values = grad.coalesce().values() if grad.is_sparse else torch.view_as_real(grad)
    assert float(values.abs().max()) == 0.5
    stats = watch.tracked[0].stats
    assert watch.health().errors == 0
    assert stats is not None
    assert float(stats.max_abs) > 0.5


def test_monitoring_a_sparse_gradient_leaves_it_as_it_is() -> None:
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quiet(model, optimizer)
    model(torch.tensor([1, 1, 2])).sum().backward()
    before = model.weight.grad
    optimizer.step()
    assert model.weight.grad is before
    assert before is not None
    assert not before.is_coalesced()


def test_disabled_mode_starts_no_thread_and_writes_no_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    model, optimizer = task()
    with quiet(model, optimizer, clip=gradwatch.clip.norm(0.5)):
        backward(model)
        optimizer.step()
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
