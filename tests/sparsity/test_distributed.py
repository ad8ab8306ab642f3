"""Two processes over gloo: data parallel and fully sharded training under accelerate."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import multiprocessing, nn, optim
from torch.distributed.fsdp import fully_shard

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
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def data_parallel(accelerator, folder: Path) -> None:
    model = network()
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
    # what accelerate calls under FSDP 2, which it refuses to call on a CPU; sharding replaces the
    # parameters, so weights pruned whole have to be found again
    model = network()
    masks = prune(model)
    fully_shard(model)
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    before = model[0].weight.full_tensor().clone()
    hold(masks, model, optimizer)
    train(accelerator, model, optimizer)
    masks.verify(model)
    after = model[0].weight.full_tensor()
    assert not after[~masks["0.weight"]].any()
    assert (after != before)[masks["0.weight"]].all()
    masks.save(folder / f"masks{accelerator.process_index}")


def fully_sharded_before_pruning(accelerator, folder: Path) -> None:
    model = network()
    fully_shard(model)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(accelerator, model, optimizer)
    whole = network()
    whole.load_state_dict({k: v.full_tensor() for k, v in model.state_dict().items()})
    masks = prune_trained_model(model, optimizer)
    assert masks.digest() == prune(whole).digest()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].full_tensor()
    assert not momentum[~masks["0.weight"]].any() and momentum.any()
    train(accelerator, model, optimizer)
    masks.verify(model)
    masks.save(folder / f"masks{accelerator.process_index}")


CASES = (data_parallel, fully_sharded, fully_sharded_before_pruning)


def process(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    for case in CASES:
        (folder / case.__name__).mkdir(exist_ok=True)
        case(Accelerator(cpu=True), folder / case.__name__)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(process, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_zeros_stay_and_masks_agree_over_two_processes(case, folder):
    masks = [Masks.load(folder / case / f"masks{rank}") for rank in range(2)]
    assert masks[0].digest() == masks[1].digest()
    assert masks[0].density() == 0.5
