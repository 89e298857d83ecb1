"""ProDA's first stage by hand: labels set right by prototypes, two views, prototypes and average that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import CLASSES, FACTS, Stream, Stub, batch, changed, context, copied, terms, train, view
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.engine.contract import Carry, TaskInfo
from tutelage.losses.symmetric import symmetric_cross_entropy
from tutelage.methods.distillation.cache import TeacherCache, compress
from tutelage.methods.proda import ProDA
from tutelage.nets.segmentor import Prediction

MEANS = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.6, 0.4], [0.9, 0.8, 0.7]])
WIDE = {"temperature": 20.0, "min_pixels": 1}


def stub(seed: int = 0, norm: bool = False) -> Stub:
    net = Stub(seed, norm=norm)
    net.embedding_channels = 3
    return net


def known(means: Tensor = MEANS) -> TaskInfo:
    return replace(FACTS, fitted_inputs={"prototypes": {"prototypes": means, "counts": torch.full((len(means),), 7.0)}})


def method(net: Any = None, info: TaskInfo | None = None, **settings: Any) -> ProDA:
    nets: Any = {"student": net or stub(), "labeller": stub(5)}
    made = ProDA(nets, ProDA.Settings(**{**WIDE, **settings}), info or known())
    with torch.no_grad():
        for parameter in made.ema.parameters():
            parameter.mul_(0.7)
    return made


def mirrored(weak: View) -> View:
    size = weak.geometry.size
    geometry = Geometries.stack([Geometry.crop(size, size, (0, 0), size, True)] * len(weak.image))
    return replace(weak, image=(weak.image.flip(3) * 0.8), valid=weak.valid.flip(2).clone(), geometry=geometry)


def domains(count: int = 2, size: tuple[int, int] = (32, 32), padding: int = 0) -> dict[str, Batch]:
    """Source, and a target whose strong view is its mirror, darker and with a hole."""
    target = batch(2, count=count, size=size, labels=False)
    weak = target["weak"]
    weak.valid[:, size[0] - padding :] = False
    strong = mirrored(weak)
    strong.valid[:, 8:16, 4:12] = False
    views = {"weak": weak, "strong": strong}
    return {"source": batch(1, count=count, size=size), "target": replace(target, views=views)}


def cells(net: Stub, image: Tensor) -> tuple[Tensor, Tensor]:
    prediction = net(image)
    return prediction.logits, prediction.embedding


def distances(features: Tensor, means: Tensor = MEANS) -> Tensor:
    return (features[:, None] - means[None, :, :, None, None]).norm(dim=2)


def by_hand(made: ProDA, target: Batch) -> dict[str, Tensor]:
    settings, weak, strong = made.settings, target["weak"], target["strong"]
    with torch.no_grad():
        _, features = cells(made.ema, weak.image)
        soft = made.labeller(weak.image).logits.softmax(1)
        distance = distances(features)
        product = soft * (-settings.temperature * distance).softmax(1)
        best = product.max(1)
        label = best.indices.masked_fill(best.values / product.sum(1) < settings.threshold, 255)
        valid = weak.valid[:, 2::4, 2::4]
        label = label.masked_fill(~valid, 255)
    logits, _ = cells(made.student, weak.image)
    _, strong_features = cells(made.student, strong.image)
    p = (-settings.temperature * distance.flip(3)).softmax(1)
    q = (-settings.temperature * distances(strong_features)).softmax(1)
    counted = strong.valid[:, 2::4, 2::4] & valid.flip(2)
    divergence = ((p * (p / q).log()).sum(1) * counted).sum() / (CLASSES * counted.sum())
    return {
        "symmetric": symmetric_cross_entropy(logits, label, alpha=settings.alpha, beta=settings.beta),
        "regularizer": -settings.regularizer_weight * logits.log_softmax(1).mean(),
        "structure": settings.structure * divergence,
    }


@pytest.mark.parametrize(
    ("options", "padding"), [({}, 0), ({}, 12), ({"threshold": 0.6, "alpha": 0.7, "structure": 2.0}, 5)]
)
def test_the_target_by_hand(options: dict[str, Any], padding: int) -> None:
    made, batches = method(**options), domains(3, padding=padding)
    found = terms(made, batches, "target")
    expected = by_hand(made, batches["target"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_source_is_a_pass_of_its_own() -> None:
    made, batches = method(), domains()
    assert [each.name for each in made.passes(0)] == ["source", "target"]
    source = batches["source"]["weak"]
    logits = F.interpolate(made.student(source.image).logits, scale_factor=4, mode="bilinear")
    found = terms(made, batches, "source")
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(logits, source.label, ignore_index=255))
    assert found.keys() == {"cross_entropy"}


def test_terms_of_no_weight_are_not_computed() -> None:
    made = method(structure=0.0, regularizer_weight=0.0)
    assert terms(made, domains(), "target").keys() == {"symmetric"}


def test_the_average_may_see_whole_images() -> None:
    """A crop of whole cells shows what it would show by itself; the prototypes' vectors are those of the image."""
    whole = view(4, count=2, size=(64, 48), labels=False)
    top, left = 16, 8
    crop = whole.image[..., top : top + 32, left : left + 32]
    geometry = Geometries.stack([Geometry.crop((64, 48), (64, 48), (top, left), (32, 32), False)] * 2)
    weak = View(crop, torch.ones(2, 32, 32, dtype=torch.bool), {}, geometry)
    strong = replace(weak, image=crop * 0.9)
    positions = torch.arange(2)
    alone = {"source": batch(1), "target": Batch({"weak": weak, "strong": strong}, positions)}
    both = {**alone, "target": Batch({"weak": weak, "strong": strong, "full": whole}, positions)}
    made = method()
    mine, theirs = terms(made, both, "target"), terms(made, alone, "target")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name])
    carry = Carry()
    terms(made, both, "target", carry=carry)
    logits, features = cells(made.ema, whole.image)
    label = logits.argmax(1)
    for image in range(2):
        for class_ in range(CLASSES):
            seen = label[image] == class_
            assert bool(carry["present"][image, class_]) == bool(seen.any())
            if seen.any():
                torch.testing.assert_close(carry["vectors"][image, class_], features[image, :, seen].mean(1))
    # So may the warm-up net.
    from_full = method(labels_from="full")
    torch.testing.assert_close(terms(from_full, both, "target")["symmetric"], theirs["symmetric"])
    with raises_code("missing-view", "full"):
        terms(from_full, alone, "target")


def test_prototypes_move_image_by_image() -> None:
    made, batches = method(rate=0.25), domains(3)
    carry = Carry()
    terms(made, batches, "target", carry=carry)
    expected = MEANS.clone()
    logits, features = cells(made.ema, batches["target"]["weak"].image)
    for image in range(3):
        for class_ in range(CLASSES):
            seen = logits[image].argmax(0) == class_
            if seen.any():
                expected[class_] = 0.75 * expected[class_] + 0.25 * features[image, :, seen].mean(1)
    made.after_step(context(made, batches, carries=(carry,)))
    torch.testing.assert_close(made.prototypes.prototypes, expected)
    assert torch.equal(MEANS, known().fitted_inputs["prototypes"]["prototypes"]), "a copy moves"


def test_micro_batches_are_one_batch() -> None:
    ends = []
    for accumulate in (1, 2):
        made = method(rate=0.1, decay=0.5)
        specs = made.Settings.streams
        streams = {
            name: Stream(seed, labels=spec.labels, views=spec.views) for seed, (name, spec) in enumerate(specs.items())
        }
        train(made, steps=3, accumulate=accumulate, **streams)
        ends.append(copied(made))
    assert changed(method(), ends[0])
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


def test_the_average_copies_statistics() -> None:
    made = method(stub(norm=True), decay=0.9)
    before = copied(made.ema)
    train(made)
    for name, buffer in made.ema.named_buffers():
        assert torch.equal(buffer, dict(made.student.named_buffers())[name])
    expected = 0.9 * before["classifier.weight"] + 0.1 * made.student.classifier.weight
    torch.testing.assert_close(made.ema.classifier.weight, expected)


def test_how_the_average_forwards() -> None:
    assert method().ema.declared == {}
    assert method(ema_eval=True).ema.declared == {"norm": "running", "dropout": False}


def test_nothing_but_padding() -> None:
    made, batches = method(), domains(padding=32)
    found = terms(made, batches, "target")
    assert found["symmetric"].item() == found["structure"].item() == 0.0
    (found["symmetric"] + found["structure"]).backward()
    assert not any(p.grad.any() for p in made.student.parameters() if p.grad is not None)


def test_prototypes_that_lack_or_do_not_fit() -> None:
    with raises_code("missing-fit", "prototypes"):
        method(info=FACTS)
    with raises_code("fit-shape", "3", "5"):
        method(info=known(torch.zeros(3, 5)))


def test_what_the_warm_up_said_of_whole_images_takes_the_place_of_asking_it() -> None:
    """One class kept: the labels are those of the compressed probabilities, and the net itself is not run."""
    made, batches = method(cache={"top": 1}), domains(3, padding=5)
    target = batches["target"]
    said = made.labeller(target["weak"].image).logits.detach()
    records = {name: compress(logits, top=1) for name, logits in zip(target.samples, said, strict=True)}
    made.cache = TeacherCache(records.__getitem__, CLASSES, 1.0)
    kept = torch.stack([cached_teacher(records[name]) for name in target.samples])
    assert (kept - said.softmax(1)).abs().max() > 0.01

    made.labeller = Answers(kept.log())  # type: ignore[assignment]
    expected = by_hand(made, target)
    made.labeller = Answers(None)  # type: ignore[assignment]
    found = terms(made, batches, "target")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_cache_is_of_whole_images() -> None:
    with pytest.raises(ValidationError, match="labels_from must be weak"):
        ProDA.Settings(cache={}, labels_from="full")  # type: ignore[arg-type]


class Answers(torch.nn.Module):
    """A net that always says the same, or must not be asked."""

    stride = 4

    def __init__(self, logits: Tensor | None) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Prediction:
        assert self.logits is not None, "the net was asked"
        return Prediction(self.logits, self.logits, (), None, {})


def cached_teacher(records: Any) -> Tensor:
    """Probabilities (K, h, w) by the definition: what is kept, and an equal share of the rest for all others."""
    mass = torch.from_numpy(records["mass"].astype("int64")).double() / 2**16
    rest = (1 - mass.sum(-1, keepdim=True)) / (CLASSES - mass.shape[-1])
    probability = rest.repeat(1, 1, CLASSES)
    probability.scatter_(2, torch.from_numpy(records["id"].astype("int64")), mass)
    return probability.permute(2, 0, 1).float()
