"""HRDA: the terms by hand, where the window lies, and that the net it makes is a net as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import CPU, FACTS, context, tiny, train
from tests.methods.domains import PLAIN, domains
from tutelage.engine.contract import StepContext
from tutelage.methods import hrda
from tutelage.methods.hrda import HRDA
from tutelage.nets.multi_resolution import MultiResolution, Window
from tutelage.nets.storage import load_segmentor, save_segmentor


def method(**settings: Any) -> HRDA:
    made = HRDA({"student": tiny()}, HRDA.Settings(colour=PLAIN, **settings), FACTS)
    made.student.mode(norm="running", dropout=False)
    return made


def over(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, scale_factor=8, mode="bilinear")


def box_at(found: list[Window], patch: pytest.MonkeyPatch) -> None:
    """Note where the net looks."""
    original = MultiResolution.forward_with_window

    def output(net: MultiResolution, image: torch.Tensor, box: Window) -> Any:
        found.append(box)
        return original(net, image, box)

    patch.setattr(MultiResolution, "forward_with_window", output)


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_the_terms_by_hand(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = method(detail_weight=0.3, threshold=0.0, reduction=reduction), domains(size=(64, 96))
    boxes: list[Window] = []
    box_at(boxes, monkeypatch)
    source = given["source"]["weak"]
    counted = context(made, given, pass_name="source")
    found = made(given, "source", counted)
    (top, left, height, width), net = boxes[0], made.student
    assert (height, width) == (32, 48)
    rows, columns = slice(top, top + height), slice(left, left + width)
    output = net.forward_with_window(source.image, boxes[0])
    part = source.label[:, rows, columns]

    def compared(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        total = F.cross_entropy(over(logits), label, ignore_index=255, reduction="sum")
        return total / ((label != 255).sum() if reduction == "valid" else label.numel())

    torch.testing.assert_close(found["cross_entropy"], 0.7 * compared(output.logits, source.label))
    torch.testing.assert_close(found["detail"], 0.3 * compared(output.detail, part))

    seen: list[tuple[torch.Tensor, ...]] = []
    pseudo_label_loss = made.pseudo_label_loss
    monkeypatch.setattr(made, "pseudo_label_loss", lambda *given: (seen.append(given), pseudo_label_loss(*given))[-1])
    mixed = made(given, "mixed", context(made, given, pass_name="mixed"))["mixed"]
    image, label, weight, _ = seen[0]
    box = boxes[-1]
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    output = net.forward_with_window(image, box)
    whole, detail = (
        (F.cross_entropy(over(logits), its, ignore_index=255, reduction="none") * weighs).mean()
        for logits, its, weighs in (
            (output.logits, label, weight),
            (output.detail, label[:, rows, columns], weight[:, rows, columns]),
        )
    )
    torch.testing.assert_close(mixed, 0.7 * whole + 0.3 * detail)


def test_windows_move_with_step_pass_and_slice_and_lie_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = method(), domains(size=(64, 128))
    boxes: list[Window] = []
    monkeypatch.setattr(MultiResolution, "forward_with_window", lambda net, image, box: boxes.append(box))
    image = given["source"]["weak"].image
    for step in range(6):
        for pass_name in ("source", "mixed"):
            for part in (0, 1):
                for _ in range(2):
                    made._forward_with_window(image, StepContext(step, 10, 1, CPU, pass_name, part))
    assert boxes[::2] == boxes[1::2], "a function of where the run stands"
    assert len(set(boxes)) > 5
    for box in boxes:
        assert (box.height, box.width) == (32, 64)
        assert box.top % 16 == box.left % 16 == 0
        assert box.top + box.height <= 64
        assert box.left + box.width <= 128


def test_a_given_window_and_a_net_that_has_its_own() -> None:
    made = method(multi_resolution={"detail": [20, 40], "width": 8})
    assert isinstance(made.student, MultiResolution)
    assert made.student.window_of((64, 64)) == (32, 48)
    again = HRDA({"student": made.student}, HRDA.Settings(), FACTS)
    assert again.student is made.student


def test_crops_that_do_not_fit_are_refused() -> None:
    made, given = method(), domains(size=(60, 64))
    with raises_code("crop-multiple", "16", "60 x 64") as caught:
        made(given, "source", context(made, given))
    assert "[64, 64]" in str(caught.value.remedy)


def test_the_distance_is_that_of_the_half_scale_image() -> None:
    made = method(feature_distance={"weight": 1.0})
    with torch.no_grad():
        for parameter in made.student.encoder.parameters():
            parameter.mul_(1.3)
    given = domains(count=1, size=(64, 64), ignored=0.0)
    given["source"]["weak"].label.fill_(1)
    found = made(given, "source", context(made, given))["feature_distance"]
    half = F.interpolate(given["source"]["weak"].image, scale_factor=0.5, mode="bilinear")
    with torch.no_grad():
        now = made.student.encode(half).levels[-1]
        before = tiny().eval().encode(half).levels[-1]
    torch.testing.assert_close(found, (now - before).norm(dim=1).mean())


def test_the_trained_net_is_written_and_read_as_any_other(tmp_path: Path) -> None:
    made = HRDA({"student": tiny()}, HRDA.Settings(threshold=0.4), FACTS)
    start = [value.clone() for value in made.student.attention.parameters()]  # type: ignore[operator, union-attr]
    train(made, steps=2)
    now = list(made.student.attention.parameters())  # type: ignore[union-attr]
    assert any(not torch.equal(one, other) for one, other in zip(start, now, strict=True))
    image = torch.rand(1, 3, 50, 70)
    for name, net in made.exported().items():
        path = tmp_path / f"{name}.safetensors"
        save_segmentor(net, path, classes="abc", palette=[(0, 0, 0)] * 3)  # type: ignore[arg-type]
        loaded, _ = load_segmentor(path)
        assert isinstance(loaded, MultiResolution)
        with net.inferring(), torch.no_grad():  # type: ignore[operator]
            torch.testing.assert_close(loaded(image).logits, net(image).logits)


def test_the_average_labels_with_windows_all_over_the_image() -> None:
    made, given = method(), domains(size=(64, 64))
    made.ema.mode(norm="running", dropout=False)
    expected = over(made.ema(given["target"]["weak"].image).logits).argmax(1)
    assert torch.equal(made.pseudo_labels.of(given["target"]).label_BHW, expected)
    assert hrda.HRDA.Settings.trained_nets == ("student",)
