"""Sharded parameters are recognised and refused, by what torch itself makes of them."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import gradwatch
from gradwatch.errors import WatchError

pytestmark = pytest.mark.filterwarnings("ignore")  # FSDP on a CPU warns about itself


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / Path("store")), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(kind: str, model: nn.Module) -> nn.Module:
    if kind == "fully_shard":
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model
    if kind == "tensor parallelism":
        return parallelize_module(model, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=kind.endswith("slices"))


@pytest.mark.parametrize(
    "kind", ["fully_shard", "tensor parallelism", "FSDP1 slices", "FSDP1 flat"]
)
def test_a_sharded_model_is_refused_with_the_reason(kind: str) -> None:
    model = shard(kind, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WatchError, match="only a part of it"):
        gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(1.0), mode="disabled")
    assert not optimizer._optimizer_step_pre_hooks


def test_a_model_that_is_sharded_after_it_was_watched_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(1e-6), mode="disabled")
    shard("fully_shard", model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with caplog.at_level(logging.WARNING, "gradwatch"):
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    assert caplog.text.count("only a part of it") >= 1
    assert len(caplog.records) == 1
    assert (watch.health().errors, watch.health().clipping) == (1, False)
