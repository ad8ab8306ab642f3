"""Two processes over gloo: data parallel and fully sharded training under accelerate."""

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn, optim

from workbench.sparsity import Masks, hold, prune, prune_trained_model

STEPS = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))


def train(accelerator, model, optimizer) -> None:
    torch.manual_seed(accelerator.process_index)  # other examples in each process
    for _ in range(STEPS):
        optimizer.zero_grad()
        accelerator.backward(model(torch.randn(4, 16)).square().sum())
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def data_parallel(accelerator, folder: Path) -> None:
    model, optimizer = network(), None
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
    masks = prune_trained_model(wrapped, prepared)
    train(accelerator, wrapped, prepared)
    masks.verify(wrapped)
    masks.verify(model)
    weights = accelerator.gather(model[0].weight.detach().flatten()).view(2, -1)
    assert torch.equal(weights[0], weights[1])
    masks.save(folder / f"masks{accelerator.process_index}")


def fully_sharded(accelerator, folder: Path) -> None:
    # sharding replaces the parameters and the optimizer's: masks are found before, held after
    model = network()
    masks = prune(model)
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    before = wrapped.get_parameter("0.weight").full_tensor().clone()
    hold(masks, wrapped, prepared)
    train(accelerator, wrapped, prepared)
    masks.verify(wrapped)
    after = wrapped.get_parameter("0.weight").full_tensor()
    assert not after[~masks["0.weight"]].any()
    assert (after != before)[masks["0.weight"]].all()
    masks.save(folder / f"masks{accelerator.process_index}")


def fully_sharded_before_pruning(accelerator, folder: Path) -> None:
    wrapped, prepared = accelerator.prepare(
        model := network(), optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    train(accelerator, wrapped, prepared)
    masks = prune_trained_model(wrapped, prepared)
    train(accelerator, wrapped, prepared)
    masks.verify(wrapped)
    assert masks.density() == 0.5
    masks.save(folder / f"masks{accelerator.process_index}")


def process(rank: int, case: str, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    sharded = {"fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2)}
    accelerator = Accelerator(cpu=True, **(sharded if case.startswith("fully") else {}))
    assert accelerator.num_processes == 2
    globals()[case](accelerator, folder)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("case", ["data_parallel", "fully_sharded", "fully_sharded_before_pruning"])
def test_zeros_stay_and_masks_agree_over_two_processes(case, tmp_path):
    multiprocessing.spawn(process, (case, tmp_path), nprocs=2)
    masks = [Masks.load(tmp_path / f"masks{rank}") for rank in range(2)]
    assert masks[0].digest() == masks[1].digest()
    assert masks[0].density() == 0.5
