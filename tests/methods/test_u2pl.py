"""U2PL: its terms, its memory, the teacher that follows, and what is left of it where nothing is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import CLASSES, FACTS, Stream, batch, changed, context, copied, gradients, terms, tiny, train
from tests.processes import start
from tutelage.data.batch import Batch
from tutelage.engine.contract import TaskInfo
from tutelage.losses import contrast
from tutelage.methods.settings.u2pl import U2PLSettings
from tutelage.methods.u2pl import U2PL, NegativeQueue

SMALL: dict[str, Any] = {
    "low_rank": 1,
    "high_rank": 3,
    "queue": 50,
    "keys": 20,
    "anchors": 8,
    "negatives_per_anchor": 6,
    "dimensions": 12,
    "precision": "fp32",
    "mixing_probability": 0.0,
}


def method(**settings: Any) -> U2PL:
    """Without dropout, so that what a net says can be asked again."""
    torch.manual_seed(0)
    given = U2PL({"student": tiny().mode(dropout=False)}, U2PLSettings(**{**SMALL, **settings}), FACTS)
    for head in (given.representation, given.ema_representation):
        head[3].p = head[7].p = 0.0
    given.ema.mode(dropout=False)
    return given


def pair(**options: Any) -> dict[str, Batch]:
    return {"labeled": batch(1, size=(64, 64), **options), "unlabeled": batch(2, size=(64, 64), labels=False)}


def full(logits: Tensor) -> Tensor:
    return F.interpolate(logits, size=(64, 64), mode="bilinear")


def test_the_terms_by_hand() -> None:
    given = method(keep_percent=60.0, weight=2.0)
    with torch.no_grad():
        for parameter in given.ema.parameters():
            parameter.mul_(1.1)
    batches = pair()
    labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]["weak"]
    both = torch.cat([labeled.image, unlabeled.image])
    with torch.no_grad():
        pseudo = full(given.ema.eval()(unlabeled.image).logits).argmax(1)
        given.ema.train()
        probability = full(given.ema(both).logits[2:]).softmax(1)
        entropy = -(probability * (probability + 1e-10).log()).sum(1)
        logits = given.student(both).logits
    given = method(keep_percent=60.0, weight=2.0)  # running statistics as they were
    with torch.no_grad():
        for parameter in given.ema.parameters():
            parameter.mul_(1.1)
    found = terms(given, batches, step=5)
    kept = entropy < torch.quantile(entropy.flatten(), 0.8)  # halfway from 60 percent to all
    mean = F.cross_entropy(full(logits[2:]).movedim(1, -1)[kept], pseudo[kept])
    torch.testing.assert_close(found["unsupervised"], 2 * mean * kept.numel() / kept.sum(), rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(full(logits[:2]), labeled.label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], expected, rtol=1e-4, atol=1e-5)
    assert found.keys() == {"cross_entropy", "unsupervised", "contrast"}
    assert found["contrast"] > 0


def test_gradients_reach_the_student_and_its_head() -> None:
    given = method()
    torch.stack(list(terms(given, pair()).values())).sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, has in gradients(given).items() if has} == {"student", "representation"}
    assert not any(p.requires_grad for net in (given.ema, given.ema_representation) for p in net.parameters())
    assert given.ema.training


def test_batches_of_other_sizes() -> None:
    batches = {"labeled": batch(1, count=2, size=(40, 34)), "unlabeled": batch(2, count=3, size=(64, 48), labels=False)}
    found = terms(method(mixing_probability=1.0), batches)
    assert all(torch.isfinite(term) for term in found.values())
    assert found["contrast"] > 0
    train(method(mixing="classmix", mixing_probability=1.0), unlabeled=Stream(5, batch=6, labels=False))


def test_no_label_and_no_pixel_at_all() -> None:
    given = method()
    batches = pair(ignored=1.0)
    batches["unlabeled"]["weak"].valid[:] = False
    found = terms(given, batches)
    assert {name: term.item() for name, term in found.items()} == dict.fromkeys(found, 0.0)
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert not any(gradients(given).values())
    assert not given.memory.number_K.any()


def test_padding_is_no_pseudo_label() -> None:
    given, batches = method(), pair()
    batches["unlabeled"]["weak"].valid[:, 40:] = False
    pseudo, valid = given._pseudo_labels(batches["unlabeled"]["weak"])
    assert (pseudo[:, 40:] == 255).all()
    assert (pseudo[:, :40] < CLASSES).all()
    assert torch.equal(valid, batches["unlabeled"]["weak"].valid)
    assert all(torch.isfinite(term) for term in terms(given, batches).values())


@pytest.mark.parametrize("compat", ["corrected", "published"])
def test_absent_classes(compat: str) -> None:
    given, batches = method(compat=compat), pair()
    label = batches["labeled"]["weak"].label
    label[label == 1] = 255
    found = terms(given, batches)
    assert all(torch.isfinite(term) for term in found.values())
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in given.parameters() if p.grad is not None)


# Mixing


@pytest.mark.parametrize("mixing", ["cutmix", "classmix", "cutout"])
def test_mixing_changes_images_and_pseudo_labels_alike(mixing: str) -> None:
    given, view = method(mixing=mixing, mixing_probability=1.0), batch(2, count=3, size=(64, 64), labels=False)["weak"]
    pseudo = torch.arange(3 * 64 * 64).view(3, 64, 64) % CLASSES
    valid = torch.ones(3, 64, 64, dtype=torch.bool)
    valid[0, :10] = False
    now = context(given, pair())
    image, mixed, whole = given._mixed(view, pseudo, valid, now)
    own = (image == view.image).all(1)
    assert 0.2 < own.float().mean() < 0.8
    assert torch.equal(mixed[own], pseudo[own])
    if mixing == "cutout":
        assert (mixed[~own] == 255).all()
        erased = image.movedim(1, -1)[~own]
        torch.testing.assert_close(erased, given.student.mean.flatten().expand_as(erased))
        assert torch.equal(whole, valid)
    else:
        assert torch.equal(image.movedim(1, -1)[~own], view.image.roll(-1, 0).movedim(1, -1)[~own])
        assert torch.equal(mixed[~own], pseudo.roll(-1, 0)[~own])
        assert torch.equal(whole[~own], valid.roll(-1, 0)[~own])


def test_half_of_the_steps_are_mixed() -> None:
    given, view = method(mixing_probability=0.5), batch(2, labels=False)["weak"]
    maps = torch.zeros(2, 32, 32, dtype=torch.int64), torch.ones(2, 32, 32, dtype=torch.bool)
    mixed = [given._mixed(view, *maps, context(given, pair(), step=step))[0] is not view.image for step in range(60)]
    assert 15 < sum(mixed) < 45


# The memory


def filled(capacities: list[int], keys: list[list[int]]) -> NegativeQueue:
    """A memory of numbers; each entry is what one step adds to each class."""
    memory = NegativeQueue(capacities, 1, "fp32")
    for counts in keys:
        most = max(counts)
        rows = 1 + memory.rows_RC.max() + torch.arange(len(counts) * most)
        memory.append(rows.view(len(counts), most, 1), torch.tensor(counts))
    return memory


def test_each_class_goes_round_in_its_own_part() -> None:
    memory = filled([5, 3, 3], [[3, 0, 2], [3, 1, 2]])
    assert memory.number_K.tolist() == [5, 1, 3]
    assert memory.first_K.tolist() == [0, 5, 8]
    assert memory.rows_RC.flatten().tolist() == [11, 2, 3, 9, 10, 12, 0, 0, 16, 8, 15]


def test_more_keys_than_a_part_holds() -> None:
    with pytest.raises(ValueError, match="part of 3"):
        filled([5, 3], [[4, 0]])


@pytest.mark.parametrize("keys", [5, 1000, None])
def test_no_key_is_taken_twice_and_all_parts_of_the_images_give_some(keys: int | None) -> None:
    given = method(keys=keys, queue=30)
    teacher = torch.stack([torch.cos(torch.arange(400.0) / 200), torch.sin(torch.arange(400.0) / 200)], 1)
    teacher = F.pad(teacher, (0, SMALL["dimensions"] - 2))
    mask = torch.zeros(CLASSES, 400, dtype=torch.bool)
    mask[0, ::2] = True
    mask[1, 7:9] = True
    given._remember(teacher, mask, context(given, pair()))
    limit = min(keys or 30, 30)
    assert given.memory.number_K.tolist() == [limit, 2, 0]
    angle = torch.atan2(given.memory.rows_RC[:, 1], given.memory.rows_RC[:, 0]) * 200
    places = angle[:limit].round().long()
    assert len(set(places.tolist())) == limit
    assert (places % 2 == 0).all()
    assert (places.diff() - 400 / limit).abs().max() <= 2, "evenly spread"
    assert angle[30:32].round().tolist() == [7, 8]


def test_the_memory_is_kept_in_checkpoints_and_reported() -> None:
    given = method()
    train(given)
    kept = given.learned_state()
    assert {"memory.rows_RC", "memory.pointer_K", "memory.number_K"} <= kept.keys()
    assert kept["memory.number_K"].sum() > 0
    assert "3 classes x 50 negatives" in given.extra_report()["memory of negatives"]
    large = U2PL({"student": tiny()}, U2PLSettings(low_rank=1), TaskInfo(2)).extra_report()["memory of negatives"]
    assert "29 MiB" in large


def test_remembered_negatives_have_length_one_and_are_this_batchs() -> None:
    given = method()
    found = terms(given, pair())
    assert found["contrast"] > 0, "keys are remembered before negatives are drawn"
    for first, number in zip(given.memory.first_K, given.memory.number_K, strict=True):
        lengths = given.memory.rows_RC[first : first + number].norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def _train_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    given = method(mixing_probability=0.5)
    # Other images, and another number of negatives, in each process.
    train(given, steps=2, labeled=Stream(rank), unlabeled=Stream(10 + rank, labels=False))
    state = {name: value for name, value in given.state_dict().items() if name.startswith("memory")}
    torch.save(state, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_memories_of_two_processes_are_equal(tmp_path: Path) -> None:
    processes = [start(_train_rank, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert int(first["memory.number_K"].sum()) > 0


# The teacher


def test_the_average_follows_parameters_alone() -> None:
    given = method(decay=0.6)
    before = copied(given.student)
    train(given, steps=1)
    assert changed(given.student, before)
    for mine, theirs in ((given.ema, given.student), (given.ema_representation, given.representation)):
        for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(own, other), "the first average is a copy"
    teacher = copied(given.ema)
    with torch.no_grad():
        given.student.classifier.weight.add_(1.0)
    for step, decay in ((1, 0.5), (5, 0.6)):
        given.after_step(context(given, pair(), step=step))
        expected = decay * teacher["classifier.weight"] + (1 - decay) * given.student.classifier.weight
        torch.testing.assert_close(given.ema.classifier.weight, expected)
        assert {n for n in changed(given.ema, teacher) if "running" in n or "num_batches" in n} == set()
        teacher = copied(given.ema)


def test_labels_alone_at_first_then_the_teacher_becomes_the_student() -> None:
    given = method(supervised_steps=2)
    assert terms(given, pair(), step=1).keys() == {"cross_entropy"}
    teacher, head = copied(given.ema), copied(given.representation)
    train(given, steps=1)
    parameters = {name for name, _ in given.ema.named_parameters()}
    assert not changed(given.ema, teacher) & parameters
    assert {name for name in changed(given.ema, teacher) if name.endswith("running_mean")}, "its statistics go on"
    assert not changed(given.representation, head)
    train(given, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(given.ema.parameters(), given.student.parameters(), strict=True))
    assert terms(given, pair(), step=2).keys() == {"cross_entropy", "unsupervised", "contrast"}


# Settings


def test_a_rank_that_no_class_has() -> None:
    with raises_code("rank-out-of-range", "3"):
        U2PL({"student": tiny()}, U2PLSettings(), TaskInfo(3))
    with pytest.raises(ValidationError, match="low_rank must be below high_rank"):
        U2PLSettings(low_rank=5, high_rank=5)


def test_two_classes_have_negatives_from_rank_one_on() -> None:
    label = torch.arange(40) % 2
    chosen = contrast.candidates(
        label == torch.arange(2)[:, None],
        torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).softmax(0),
        torch.ones(40, dtype=torch.bool),
        torch.ones(40, dtype=torch.bool),
        torch.arange(40) < 20,
        low_rank=1,
        high_rank=20,
    )
    assert chosen.negative[:, :20].any(1).all()
    assert chosen.negative[:, 20:].any(1).all()


def test_the_preset_fills_in_what_is_not_given() -> None:
    published = U2PLSettings(compat="published", onehot="correct")
    assert (published.negatives, published.indexing, published.onehot) == ("published", "published", "correct")
    usual = U2PLSettings()
    assert (usual.negatives, usual.indexing, usual.onehot) == ("paper", "corrected", "correct")


def test_what_is_exported() -> None:
    given = method()
    assert list(given.exported()) == ["student", "ema"]
    assert given.exported()["ema"] is given.ema
