"""CIRKD's memory: what is remembered where, on one process and on two, and what must be exactly zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.errors import raises_code
from tests.methods.cases import CPU, FACTS, Stream, batch, copied, terms, tiny, train
from tests.processes import start
from tutelage.engine.contract import StepContext
from tutelage.losses.relations import unit
from tutelage.methods.cirkd import CIRKD, CIRKDV2
from tutelage.methods.distillation.cirkd import Memory, MinibatchPixel, SeededDraws
from tutelage.methods.distillation.cirkd_v2 import Channel, ContextBlock
from tutelage.methods.distillation.queues import enqueue
from tutelage.methods.distillation.term import Maps, NetShape, Pair, TermInputs
from tutelage.methods.settings.distill_terms import ChannelSettings, MemorySettings

SMALL = {"pixel_slots": 40, "region_slots": 12, "pixels": 60, "regions": 12}


def pair(classes: int = 3, grid: tuple[int, int] = (8, 8)) -> Pair:
    return Pair(classes, NetShape(6, False), NetShape(9, False), grid, grid)


def memory(**changes: Any) -> Memory:
    torch.manual_seed(0)
    return Memory(MemorySettings.model_validate({**SMALL, "precision": "fp32", **changes}), pair())


def seen(label: Tensor, seed: int = 0, grid: tuple[int, int] = (8, 8), scale: float = 1.0) -> TermInputs:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(len(label), 6, *grid, generator=generator).requires_grad_()
    teacher = torch.randn(len(label), 9, *grid, generator=generator) * scale
    nothing = torch.empty(0)
    return TermInputs(Maps(nothing, student, None), Maps(nothing, teacher, None), label)


def a_tick(step: int = 0) -> StepContext:
    return StepContext(step, 10, 1, CPU, "train")


def total(found: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(found.values())).sum()


# Queues


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(1, 9), calls=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), max_size=8))
def test_a_queue_holds_what_came_last(slots: int, calls: list[list[int]]) -> None:
    width = min(4, slots)
    queue, pointer = torch.zeros(2, slots, 1), torch.zeros(2, dtype=torch.int64)
    expected: list[list[float]] = [[], []]
    written = 0
    for counts in calls:
        number = torch.tensor(counts).clamp(max=width)
        rows = torch.arange(written + 1, written + 1 + 2 * width).float().view(2, width, 1)
        written += 2 * width
        enqueue(queue, pointer, rows, number, wraps=True)
        for one in range(2):
            expected[one] += rows[one, : number[one], 0].tolist()
    for one in range(2):
        last = sorted(expected[one][-slots:])
        assert sorted(value for value in queue[one, :, 0].tolist() if value) == last
        assert int(pointer[one]) == len(expected[one]) % slots


def test_the_published_overflow_writes_the_last_slots() -> None:
    queue, pointer = torch.zeros(1, 5, 1), torch.tensor([3])
    enqueue(queue, pointer, torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([3]), wraps=False)
    assert queue[0, :, 0].tolist() == [0, 0, 1, 2, 3]
    assert pointer.tolist() == [0]
    enqueue(queue, pointer, torch.ones(1, 3, 1), torch.tensor([0]), wraps=False)
    assert pointer.tolist() == [0]


def test_pixels_of_the_right_class_are_remembered() -> None:
    label = torch.full((1, 8, 8), 255)
    label[0, 5:, 2:6] = 1
    term, view = memory(), seen(label)
    before = term.pixel_queue.clone()
    term.relate(view, SeededDraws(a_tick()))
    rows = unit(view.teacher.feature.flatten(2).transpose(1, 2))[0]
    shown = rows[(label[0] == 1).flatten()]
    assert term.pixel_pointer.tolist() == [0, 12, 0]
    assert torch.equal(term.pixel_queue[[0, 2]], before[[0, 2]])
    for row in term.pixel_queue[1, :12]:
        assert ((shown - row).abs().max(dim=1).values < 1e-6).any()
    torch.testing.assert_close(term.region_queue[1, 0], unit(shown.mean(0)))
    assert term.region_pointer.tolist() == [0, 1, 0]


def test_published_pixels_are_those_of_the_top() -> None:
    label = torch.full((1, 8, 8), 255)
    label[0, 6:] = 2
    term, view = memory(compat="published"), seen(label)
    term.relate(view, SeededDraws(a_tick()))
    top = unit(view.teacher.feature.flatten(2).transpose(1, 2))[0, :16]
    for row in term.pixel_queue[2, :16]:
        assert ((top - row).abs().max(dim=1).values < 1e-6).any()


def test_some_anchors_stand_for_all() -> None:
    view = seen(torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1)))
    every_slot = {"pixels": 120, "regions": 36}
    whole_term, part = memory(**every_slot), memory(**every_slot, anchors=64)
    everything = [float(loss.detach()) for loss in whole_term.relate(view, SeededDraws(a_tick()))]
    drawn = []
    for step in range(20):
        part.load_state_dict(memory(**every_slot).state_dict())
        drawn.append([float(loss.detach()) for loss in part.relate(view, SeededDraws(a_tick(step)))])
    means = torch.tensor(drawn).mean(0)
    torch.testing.assert_close(means, torch.tensor(everything), rtol=0.05, atol=0.0)
    assert len({round(first, 6) for first, _ in drawn}) > 15


# What must be zero or finite


@pytest.mark.parametrize("fill", [255, 0])
def test_a_batch_without_labels_has_no_memory_loss(fill: int) -> None:
    label = torch.full((2, 8, 8), 255)
    label[:, 0, 0] = fill
    view = seen(label)
    found = memory()(view, a_tick())
    assert total(dict(found)).isfinite()
    (gradient,) = torch.autograd.grad(total(dict(found)), view.student.feature)
    assert torch.isfinite(gradient).all()
    if fill == 255:
        assert total(dict(found)).item() == 0
        assert not gradient.any()


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    seed=st.integers(0, 999),
)
def test_any_batch_gives_finite_terms(images: int, grid: tuple[int, int], scale: float, seed: int) -> None:
    label = torch.randint(0, 4, (images, 9, 11), generator=torch.Generator().manual_seed(seed))
    label[label == 3] = 255
    view = seen(label, seed, grid, scale)
    channel = Channel(ChannelSettings(slots=20, channels=10), pair(grid=grid))
    found: dict[str, Tensor] = {}
    found |= MinibatchPixel(MinibatchPixel.Settings(), pair(grid=grid))(view, a_tick())
    # The projections' batch norms need more than one value.
    if images > 1 or grid != (1, 1):
        found |= memory()(view, a_tick())
    if images > 1 or max(grid) > 4:
        found |= channel(view, a_tick())
    (gradient,) = torch.autograd.grad(total(found), view.student.feature)
    assert total(found).isfinite()
    assert torch.isfinite(gradient).all()


# Whole methods


def whole(kind: type[Any], **changes: Any) -> Any:
    nets = {"student": tiny("lraspp", seed=0), "teacher": tiny("deeplabv3plus", seed=1)}
    torch.manual_seed(0)
    return kind(nets, kind.Settings.model_validate({"memory": SMALL, **changes}), FACTS)


def test_every_term_has_its_weight() -> None:
    method = whole(CIRKDV2, channel={"slots": 50, "channels": 20, "regression": 0.0}, minibatch=0.0)
    found = terms(method, {"labeled": batch(0, count=4, size=(64, 64))})
    assert found["cirkd_channel_regression"].item() == 0
    assert {"fitnet", "pixel_kd", "cirkd_memory_pixel", "cirkd_memory_region", "cirkd_channel_memory"} <= set(found)
    assert "cirkd_minibatch" not in found
    assert set(terms(whole(CIRKD), {"labeled": batch(0, count=4, size=(64, 64))})) == {
        "cross_entropy",
        "pixel_kd",
        "cirkd_minibatch",
        "cirkd_memory_pixel",
        "cirkd_memory_region",
    }


@pytest.mark.parametrize("kind", [Memory, Channel])
def test_the_weight_of_a_term_multiplies_all_of_it(kind: type[Any]) -> None:
    view = seen(torch.zeros(2, 8, 8, dtype=torch.int64))
    found = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        small = SMALL if kind is Memory else {"slots": 50, "channels": 20}
        found.append(kind(kind.Settings.model_validate({**small, "weight": weight}), pair())(view, a_tick()))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(3 * value, found[1][name])


def test_queues_are_stored_as_asked_and_said() -> None:
    assert whole(CIRKD).terms["cirkd_memory"].pixel_queue.dtype == torch.float16
    text = whole(CIRKD, memory={**SMALL, "precision": "bf16"}).extra_report()["distillation"]
    assert "MiB (bf16, corrected)" in text
    assert "averaged to the student's grid" in text


def test_what_is_trained_only_is_not_exported() -> None:
    method = whole(CIRKDV2, channel={"slots": 50})
    assert set(method.exported()) == {"student"}
    before = copied(method.context)
    train(method, optimizer={"kind": "adamw", "lr": 1e-3})
    assert any(not torch.equal(value, before[name]) for name, value in copied(method.context).items())


def test_a_changed_crop_is_an_error() -> None:
    term = Channel(ChannelSettings(slots=20), pair(grid=(8, 8)))
    with raises_code("crop-changed"):
        term(seen(torch.zeros(2, 8, 8, dtype=torch.int64), grid=(16, 16)), a_tick())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="pixel_slots"):
        MemorySettings(pixel_slots=10)
    with pytest.raises(ValidationError):
        MemorySettings(temperature=0.001)


def test_a_context_block_halves_an_odd_number_of_channels_rounded_down() -> None:
    block = ContextBlock(7)
    assert block.query.out_channels == block.value.out_channels == 3
    assert block(torch.randn(2, 7, 3, 4)).shape == (2, 7, 3, 4)


# Two processes


def _train_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    method = whole(CIRKDV2, channel={"slots": 50, "channels": 20})
    train(method, steps=2, labeled=_Halves())
    torch.save({n: v for n, v in method.state_dict().items() if "queue" in n or "pointer" in n}, folder / f"{rank}.pt")
    dist.destroy_process_group()


class _Halves(Stream):
    """Each process its half of every batch."""

    def __init__(self) -> None:
        super().__init__(seed=0)

    def batches(self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: Any) -> Any:
        for whole_batch in super().batches(first_step, steps, world, 0, 1, device):
            self.count = getattr(self, "count", -1) + 1
            if self.count % world == rank:
                yield whole_batch


def test_queues_of_two_processes_are_equal(tmp_path: Path) -> None:
    processes = [start(_train_rank, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert int(first["terms.cirkd_memory.pixel_pointer"].sum()) > 0
