"""Data-parallel training: replicas report once, agree through the store and never wait in the hook."""

import os
import random
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.client.collector import collect
from tests.client.ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import gradwatch

STEPS = 60
INTERVAL = 4


class Collectives(TorchDispatchMode):
    """Notes every operation of torch.distributed that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if "c10d" in str(func):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Inside:
    """Passes on to the real listener and notes the collectives it runs."""

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self.collectives = Collectives()

    def on_gradients(self, *args: Any) -> None:
        with self.collectives:
            self.listener.on_gradients(*args)

    def on_stepped(self, *args: Any) -> None:
        self.listener.on_stepped(*args)


@dataclass
class Trained:
    run: str
    session: str
    replica: bool
    steps: list[int]
    names: list[str]
    norms: list[list[float]]
    checksums: list[float | None]
    weights: list[list[float]]
    collectives: list[str]
    health: Any


def build() -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(100 * step + rank))


def train(rank: int, clip: Any, drift_at: int | None = None) -> Trained:
    model, optimizer = build()
    watch = gradwatch.watch(model, optimizer, clip=clip)
    seen = collect(watch)
    inside = Inside(watch.tracked[0])
    watch.tracked[0].hook._listener = inside  # type: ignore[union-attr]  # it has a hook
    for step in range(STEPS):
        optimizer.zero_grad()
        model(batch(rank, step)).square().mean().backward()
        optimizer.step()
        if step == drift_at and rank == 1:
            with torch.no_grad():
                next(model.parameters()).add_(1e-4)
    return Trained(
        run=watch.identity.run,
        session=watch.identity.session,
        replica=watch.identity.replica,
        steps=[sample.step for sample in seen.samples],
        names=seen.announced[0],
        norms=seen.rows("norm"),
        checksums=seen.scalars("weight_checksum"),
        weights=[p.flatten().tolist() for p in model.parameters()],
        collectives=inside.collectives.seen,
        health=watch.health(),
    )


def follow(rank: int, fault: str | None) -> tuple[list[float], bool]:
    """Follow recommendations that only rank 0 sees, every rank at its own pace."""
    model, optimizer = build()
    clip = gradwatch.clip.recommended(gradwatch.clip.norm(1.0), interval=INTERVAL)
    watch = gradwatch.watch(model, optimizer, clip=clip)
    following = watch.tracked[0].following
    assert following is not None
    assert following.agreement is not None
    version = 0

    def newest() -> Mapping[str, Any] | None:
        nonlocal version
        version += 1
        return {"policy": "norm", "threshold": 1.0 * 0.9**version, "version": version}

    if rank == 0:
        following.newest = newest
    applied = []
    for step in range(STEPS):
        time.sleep(random.uniform(0.0, 0.002))
        if step == STEPS // 2 and fault is not None and rank == int(fault[-1]):
            break_store(following.agreement, fault.split()[0])
        optimizer.zero_grad()
        model(batch(rank, step)).square().mean().backward()
        optimizer.step()
        applied.append(float(watch.threshold))  # type: ignore[arg-type]  # a tensor after a step
    assert watch.health().errors == 0
    return applied, following.agreement.frozen


def break_store(agreement: Any, method: str) -> None:
    """Let one method of this rank's store fail from now on."""

    class Broken:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            if name == method:
                raise RuntimeError(f"the store is gone ({method})")
            return getattr(self._store, name)

    agreement.store = Broken(agreement.store)


def shard_states(rank: int) -> tuple[bool, dict[str, int]]:
    """Keep each rank's share of the optimizer's state only (ZeRO-1); gradients are whole all the same."""
    final, steps = [], {}
    for zero in (False, True):
        model, optimizer = build()
        if zero:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, when this module is imported
                from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: PLC0415 - warns

                optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.05)
        watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.norm(0.1))
        for step in range(5):
            optimizer.zero_grad()
            model(batch(rank, step)).square().mean().backward()
            optimizer.step()
        steps = watch.health().steps
        final.append([p.detach().clone() for p in model.parameters()])
    return all(torch.allclose(a, b) for a, b in zip(*final, strict=True)), dict(steps)


def skip(rank: int) -> float:
    """Leave steps out on one rank only; nobody may wait for it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clip = gradwatch.clip.recommended(gradwatch.clip.norm(0.5), interval=1)
    watch = gradwatch.watch(model, optimizer, clip=clip)
    began = time.monotonic()
    for step in range(20):
        optimizer.zero_grad()
        model(batch(rank, step)).square().mean().backward()
        if rank == 0 or step % 2:
            optimizer.step()
    assert watch.health().errors == 0
    return time.monotonic() - began


def job(rank: int) -> dict[str, Any]:
    faults = [None, "get 1", "add 1", "check 1", "set 0", "get 0"]
    if dist.get_world_size() > 2:
        faults = faults[:2]
    return {
        "plain": train(
            rank, gradwatch.clip.chain(gradwatch.clip.value(0.05), gradwatch.clip.norm(0.1))
        ),
        "drifted": train(rank, None, drift_at=20),
        "follow": {fault: follow(rank, fault) for fault in faults},
        "skip": skip(rank),
        "zero": shard_states(rank),
        "elastic": os.environ["TORCHELASTIC_RUN_ID"],
    }


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(job, request.param)


def test_all_ranks_have_one_run_and_session_and_torchruns_none_is_no_run(
    ranks: list[dict[str, Any]],
) -> None:
    assert {rank["elastic"] for rank in ranks} == {"none"}
    for scenario in ("plain", "drifted"):
        assert len({rank[scenario].run for rank in ranks}) == 1
        assert len({rank[scenario].session for rank in ranks}) == 1
        assert ranks[0][scenario].run != "none"
    assert ranks[0]["plain"].run != ranks[0]["drifted"].run


def test_replicas_report_once_and_the_others_only_their_checks(ranks: list[dict[str, Any]]) -> None:
    first, *others = [rank["plain"] for rank in ranks]
    assert first.steps == list(range(STEPS))
    assert not first.replica
    assert first.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for other in others:
        assert other.replica
        assert other.steps == [0, 50]
        assert other.norms == [first.norms[0], first.norms[50]]


def test_every_rank_clips_alike_and_no_collective_runs_in_the_hook(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["plain"].weights == ranks[0]["plain"].weights
        assert rank["plain"].collectives == []
        assert rank["plain"].health.errors == 0


def test_weights_that_drift_apart_show_in_the_checksum_though_the_gradients_agree(
    ranks: list[dict[str, Any]],
) -> None:
    sound, drifted = ([rank[name] for rank in ranks] for name in ("plain", "drifted"))
    assert len({rank.checksums[-1] for rank in sound[1:]} | {sound[0].checksums[50]}) == 1
    assert drifted[1].checksums[0] == drifted[0].checksums[0]
    assert drifted[1].checksums[-1] != drifted[0].checksums[50]
    assert drifted[1].norms[-1] == drifted[0].norms[50]


def test_a_recommended_threshold_changes_on_the_same_step_on_every_rank(
    ranks: list[dict[str, Any]],
) -> None:
    traces = [rank["follow"][None] for rank in ranks]
    assert all(trace == traces[0] for trace in traces)
    applied, frozen = traces[0]
    assert not frozen
    assert len(set(applied)) > STEPS // INTERVAL // 2
    changes = [step for step in range(1, STEPS) if applied[step] != applied[step - 1]]
    assert all(step % INTERVAL == 0 for step in changes)


def test_when_one_ranks_store_fails_all_freeze_at_the_same_step(
    ranks: list[dict[str, Any]],
) -> None:
    for fault in set(ranks[0]["follow"]) - {None}:
        traces = [rank["follow"][fault] for rank in ranks]
        assert all(trace == traces[0] for trace in traces), fault
        applied, frozen = traces[0]
        assert frozen, fault
        assert len(set(applied[: STEPS // 2])) > 2
        assert len(set(applied[STEPS // 2 + 3 * INTERVAL :])) == 1


def test_a_rank_that_leaves_steps_out_holds_nobody_up(ranks: list[dict[str, Any]]) -> None:
    assert max(rank["skip"] for rank in ranks) < 60


def test_an_optimizer_that_shards_its_state_steps_with_the_clipped_gradient(
    ranks: list[dict[str, Any]],
) -> None:
    assert [rank["zero"] for rank in ranks] == [(True, {"default": 5})] * len(ranks)
