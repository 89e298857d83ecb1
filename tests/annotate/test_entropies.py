"""Mean entropies of predicted classes, over images and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.annotate.nets import CLASSES, COUNT, ColourNet, write_dataset
from tutelage.annotate.entropies import KIND, fit_entropies
from tutelage.data.dataset import Dataset
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.losses.resize import resize_logits
from tutelage.prototypes.storage import load_tensors


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path)


def run(dataset: Dataset, out: Path, protocol: Protocol, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    path = out / "f.safetensors"
    facts = fit_entropies(
        ColourNet(), dataset, path, out / "p", device=torch.device("cpu"), protocol=protocol, **changes
    )
    tensors, about = load_tensors(path, KIND)
    assert about == {"classes": list(CLASSES.names), "facts": facts}
    return tensors, facts


def test_mean_entropies_of_predicted_pixels(dataset: Dataset, tmp_path: Path) -> None:
    tensors, facts = run(dataset, tmp_path, Protocol())
    total, number = torch.zeros(4).double(), torch.zeros(4).long()
    for index in range(COUNT):
        image = torch.from_numpy(dataset.image(index).copy()).permute(2, 0, 1)[None].float() / 255
        logits = resize_logits(ColourNet()(image).logits, (16, 24), "grid", 2)[0]
        probability = logits.double().softmax(0)
        entropy = -(probability * probability.log()).sum(0)
        for klass in range(4):
            member = logits.argmax(0) == klass
            total[klass] += entropy[member].sum()
            number[klass] += member.sum()
    assert tensors["pixels"].tolist() == number.tolist()
    torch.testing.assert_close(tensors["entropy"], total / number.clamp(min=1), atol=1e-6, rtol=1e-5)
    assert facts["without_samples"] == ["never"]
    assert facts["classes"]["never"] == {"pixels": 0, "entropy": None}


@pytest.mark.parametrize("kind", ["whole", "sliding"])
def test_a_net_that_answers_nan_is_refused(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    class Diverged(ColourNet):
        def __call__(self, image: Any) -> Any:
            said = super().__call__(image)
            said.logits[..., 0, 0] = float("nan")
            return said

    protocol = Protocol.model_validate({"kind": kind, **({"window": (8, 8)} if kind == "sliding" else {})})
    path = tmp_path / "f.safetensors"
    with pytest.raises(TutelageError, match="not finite"):
        fit_entropies(Diverged(), dataset, path, tmp_path / "p", device=torch.device("cpu"), protocol=protocol)
    assert not path.exists()


def test_any_protocol_will_do(dataset: Dataset, tmp_path: Path) -> None:
    protocol = Protocol(kind="sliding", window=(8, 8), flip=True)
    tensors, _ = run(dataset, tmp_path, protocol)
    labels = [predict_labels(ColourNet(), dataset.image(index), protocol)[0] for index in range(COUNT)]
    counts = torch.bincount(torch.cat([torch.from_numpy(each).flatten() for each in labels]), minlength=4)
    assert tensors["pixels"].tolist() == counts.tolist()
    assert bool((tensors["entropy"] >= 0).all())


def test_images_that_cannot_be_read(dataset: Dataset, tmp_path: Path) -> None:
    dataset.samples[0].image.unlink()
    with pytest.raises(DataError, match="not found"):
        run(dataset, tmp_path, Protocol())
    assert run(dataset, tmp_path, Protocol(), on_unreadable="skip")[1]["unreadable"] == ["i 0"]
