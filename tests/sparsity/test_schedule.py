"""Masks chosen during training: straight through, once after a dense start, gradually."""

import math

import pytest
import torch
from torch import nn, optim

from workbench.sparsity import Masks, MaskSchedule, MaskScheduler, SparsityError, find_masks, nm

TWO_OF_FOUR = {"kind": "nm", "keep": 2, "of": 4}
SR_STE = MaskSchedule("straight_through", decay=2e-4)
SCHEDULES = {
    "sr_ste": SR_STE,
    "every_3": MaskSchedule("straight_through", every=3),
    "settling": MaskSchedule("straight_through", dense=0.2, settle=0.6),
    "once": MaskSchedule("once", dense=0.4),
    "gradual": MaskSchedule("gradual", dense=0.1, settle=0.8, every=2),
}
LENGTH = 10


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def train(model, optimizer, first: int, last: int, seen=None) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 8, generator=generator)).square().sum().backward()
        optimizer.step()
        if seen is not None:
            seen.append(model[0].weight.detach().clone())


def test_sr_ste_takes_the_steps_of_its_definition():
    # W <- W - lr (dL/dW at the masked W + decay x (not masked) x W): arXiv 2102.04010
    decay, rate = 0.05, 0.1
    dense = [p.detach().clone() for p in network().parameters()]
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=rate)
    held = MaskScheduler(model, optimizer, LENGTH, MaskSchedule("straight_through", decay=decay))
    reference = network()
    for step in range(4):
        masks = [nm(w, 2, 4) if w.dim() == 2 else torch.ones_like(w, dtype=bool) for w in dense]
        for parameter, weight, mask in zip(reference.parameters(), dense, masks, strict=True):
            parameter.data = weight * mask
        assert all(map(torch.allclose, reference.parameters(), model.parameters()))
        reference.zero_grad()
        generator = torch.Generator().manual_seed(step)
        reference(torch.randn(8, 8, generator=generator)).square().sum().backward()
        dense = [
            weight - rate * (parameter.grad + decay * ~mask * weight)
            for parameter, weight, mask in zip(reference.parameters(), dense, masks, strict=True)
        ]
        train(model, optimizer, step, step + 1)
    state = held.state()["dense"]
    assert torch.allclose(state["0.weight"], dense[0], atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_schedule_ends_in_two_of_four_with_masks_that_hold(name, kind):
    model = network()
    make = {"sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9), "adamw": optim.AdamW}[kind]
    optimizer = make(model.parameters())
    held = MaskScheduler(model, optimizer, LENGTH, SCHEDULES[name])
    train(model, optimizer, 0, LENGTH)
    held.remove()
    held.masks.verify(model)
    assert held.masks.density() == 0.5
    assert held.masks.pattern == TWO_OF_FOUR
    assert model[0].weight.count_nonzero() == 8 * 16 / 2  # kept weights are not zero
    train(model, optimizer, 0, 1)
    with pytest.raises(SparsityError):
        held.masks.verify(model)  # let go


def test_straight_through_lets_pruned_weights_come_back_and_once_does_not():
    flips = {}
    for name in ("sr_ste", "once"):
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        held = MaskScheduler(model, optimizer, LENGTH, SCHEDULES[name])
        train(model, optimizer, 0, 5)
        before = held.masks
        train(model, optimizer, 5, LENGTH)
        flips[name] = sum(int((before[n] != held.masks[n]).sum()) for n in before)
    assert flips["sr_ste"] > 0 == flips["once"]


def test_the_flip_rate_is_the_mean_share_of_changed_positions_since_it_was_asked():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    held = MaskScheduler(model, optimizer, LENGTH, SR_STE)
    masks, rates = [held.masks], []
    for step in range(4):
        train(model, optimizer, step, step + 1)
        masks.append(held.masks)
    for before, after in zip(masks, masks[1:], strict=False):
        changed = sum(int((before[n] != after[n]).sum()) for n in before)
        rates.append(changed / sum(mask.numel() for mask in before.values()))
    assert sum(rates) > 0
    measured = held.measured()
    assert math.isclose(measured["flip_rate"], sum(rates) / 4, rel_tol=1e-6)
    assert measured["density"] == 0.5
    assert held.measured()["flip_rate"] == 0


def test_masks_change_only_every_so_many_steps():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    held = MaskScheduler(model, optimizer, LENGTH, SCHEDULES["every_3"])
    digests = [held.masks.digest()]
    for step in range(9):
        train(model, optimizer, step, step + 1)
        digests.append(held.masks.digest())
    changes = [step for step in range(1, 10) if digests[step] != digests[step - 1]]
    assert changes and all(step % 3 == 0 for step in changes)


def test_nothing_is_masked_before_the_dense_share_is_over():
    model, alone = network(), network()
    optimizers = [optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, alone)]
    held = MaskScheduler(model, optimizers[0], LENGTH, SCHEDULES["once"])
    train(model, optimizers[0], 0, 3)
    train(alone, optimizers[1], 0, 3)
    assert all(map(torch.equal, model.parameters(), alone.parameters()))
    with pytest.raises(SparsityError, match="no masks after 3 of 10 steps.*dense until 40%"):
        held.masks  # noqa: B018
    train(model, optimizers[0], 3, 4)
    train(alone, optimizers[1], 3, 4)
    assert held.masks.digest() == find_masks(alone).digest()
    momentum = optimizers[0].state[model[0].weight]["momentum_buffer"]
    assert not momentum[~held.masks["0.weight"]].any()


@pytest.mark.parametrize(
    ("pattern", "densities"),
    [
        # keep = 2 + ceil(2 (1 - t)^3) at t = 0, 1/4, 1/2, 3/4, 1
        (TWO_OF_FOUR, [1.0, 0.75, 0.75, 0.75, 0.5]),
        # 0.2 + 0.8 (1 - t)^3
        ({"kind": "unstructured", "density": 0.2}, [1.0, 0.5375, 0.3, 0.2125, 0.2]),
    ],
)
def test_gradual_density_falls_as_a_cubic_and_nothing_comes_back(pattern, densities):
    model = nn.Sequential(nn.Linear(32, 100, bias=False))
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    held = MaskScheduler(model, optimizer, 8, MaskSchedule("gradual", settle=0.5), pattern)
    found, pruned = [held.masks.density()], torch.zeros(100, 32, dtype=torch.bool)
    for _ in range(8):
        model(torch.ones(1, 32)).square().sum().backward()
        optimizer.step()
        found.append(held.masks.density())
        assert not model[0].weight[pruned].any()
        pruned = ~held.masks["0.weight"]
    assert found == pytest.approx([*densities, *[densities[-1]] * 4], abs=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_a_resumed_run_ends_bit_equal(name, cut):
    def start():
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        return model, optimizer, MaskScheduler(model, optimizer, LENGTH, SCHEDULES[name])

    straight, optimizer, held = start()
    train(straight, optimizer, 0, LENGTH)
    half, optimizer, first = start()
    train(half, optimizer, 0, cut)
    saved = {"held": first.state(), "model": half.state_dict(), "optimizer": optimizer.state_dict()}
    resumed, optimizer, second = start()
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    second.restore(saved["held"])
    train(resumed, optimizer, cut, LENGTH)
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))
    assert held.masks.digest() == second.masks.digest()
    assert held.measured() == second.measured()


def test_an_optimizer_wrapped_by_accelerate_is_followed():
    accelerate = pytest.importorskip("accelerate")
    model = network()
    wrapped, optimizer = accelerate.Accelerator(cpu=True).prepare(
        model, optim.SGD(model.parameters(), lr=0.05)
    )
    held = MaskScheduler(wrapped, optimizer, LENGTH, SR_STE)
    train(wrapped, optimizer, 0, LENGTH)
    held.masks.verify(model)


def test_a_schedule_without_meaning_is_refused():
    model = network()
    sgd = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SparsityError, match="dense 0.5 and settle 0.5"):
        MaskSchedule("once", dense=0.5, settle=0.5)
    with pytest.raises(SparsityError, match="decay 0.1 given for kind gradual"):
        MaskSchedule("gradual", decay=0.1)
    with pytest.raises(SparsityError, match="transposable has no density that could fall"):
        MaskScheduler(model, sgd, LENGTH, MaskSchedule("gradual"), {"kind": "transposable"})
    with pytest.raises(SparsityError, match="steps none of the 2 masked weights"):
        MaskScheduler(model, optim.SGD(network().parameters(), lr=0.1), LENGTH, SR_STE)
    lbfgs = optim.LBFGS(model.parameters())
    MaskScheduler(model, lbfgs, LENGTH, SR_STE)
    with pytest.raises(SparsityError, match="closure"):
        lbfgs.step(lambda: model(torch.ones(1, 8)).sum())
    assert isinstance(find_masks(model), Masks)
