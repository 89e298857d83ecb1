"""Folder proda: prototype vectors, their updates, distances and weights, rectified labels, CAG-UDA's anchors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.losses.prototypes import anchor_distance, prototype_distances, prototype_weights, rectify
from tutelage.losses.segmentation import IGNORE
from tutelage.prototypes.anchors import anchor_labels, confident_labels
from tutelage.prototypes.means import ClassMeans, Rule, class_vectors


def corners(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=True)


def weak_view(full: Tensor, file: dict[str, NDArray]) -> Tensor:
    """The folder's map from whole images to weak views, at a quarter of their pixels."""
    views = []
    for number, one in enumerate(full):
        height, width = (int(side / 4) for side in file["weak_size_hw"][number])
        top, bottom, left, right = (int(side) for side in file["weak_crop_y1y2x1x2"][number])
        y, x, h, w = int(top / 4), int(left / 4), int((bottom - top) / 4), int((right - left) / 4)
        view = corners(one[None], height, width)[..., y : y + h, x : x + w]
        views.append(view.flip(3) if int(file["weak_hflip"][number]) else view)
    return torch.cat(views)


@pytest.mark.parametrize("name", ["prototype_weights"])
def test_prototype_weights(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    full = tensor(file["feat_full"]).requires_grad_()
    view = weak_view(full, file)
    assert_values(view, file["feat_weak"])
    distance = prototype_distances(view, tensor(file["prototypes"]))
    assert_values(distance, file["distance"])
    assert_values(prototype_weights(distance, float(file["temperature"])), file["weight"])
    (gradient,) = torch.autograd.grad((distance * tensor(file["distance_cotangent"])).sum(), full)
    assert_gradient(gradient, file["grad_feat_full"], 1e-4)


@pytest.mark.parametrize("name", ["rectify"])
def test_rectify(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    weight = tensor(file["weight"])
    soft = corners(tensor(file["soft_pseudo"]), weight.shape[2], weight.shape[3])
    assert_values(soft, file["soft_pseudo_quarter"])
    label, confidence = rectify(soft, weight)
    np.testing.assert_array_equal(label, file["rectified_label"])
    assert_values(confidence, file["rectified_confidence"])
    kept, _ = rectify(soft, weight, float(file["threshold"]))
    np.testing.assert_array_equal(kept, labels(file["rectified_label_thresholded"], 250))


@pytest.mark.parametrize("name", ["prototype_vectors"])
@pytest.mark.parametrize("kind", ["", "_thresh", "_label"])
def test_prototype_vectors(golden: Golden, name: str, kind: str) -> None:
    file = golden(f"proda/{name}")
    found = class_vectors(
        tensor(file["feat"]),
        tensor(file["logits"]),
        labels(file["labels"], 250) if kind == "_label" else None,
        threshold=float(file["conf_threshold"]) if kind == "_thresh" else None,
        min_pixels=int(file["min_pixels"]),
    )
    np.testing.assert_array_equal(found.valid, file[f"valid{kind}"] > 0)
    assert_values(found.vectors, file[f"vectors{kind}"])


@pytest.mark.parametrize("name", ["prototype_update"])
@pytest.mark.parametrize(("rule", "key"), [("mean", "mean"), ("average", "ema"), ("auto", "auto")])
def test_prototype_update(golden: Golden, name: str, rule: Rule, key: str) -> None:
    file = golden(f"proda/{name}")
    vectors, valid = tensor(file["vectors"]), tensor(file["valid"])
    means = ClassMeans(
        vectors.shape[1],
        vectors.shape[2],
        rule=rule,
        rate=float(file["momentum"]),
        count_cap=int(file["count_cap"]),
        mean_until=int(file["mean_until"]),
    )
    if rule == "mean":
        means.fold(vectors, valid)
        assert_values(means.prototypes, file["init_mean_prototypes"])
        np.testing.assert_array_equal(means.counts, file["init_mean_counts"])
    means.prototypes.copy_(tensor(file["before_prototypes"]))
    means.counts.copy_(tensor(file["before_counts"]))
    means.fold(vectors, valid)
    assert_values(means.prototypes, file[f"after_{key}_prototypes"])
    np.testing.assert_array_equal(means.counts, file[f"after_{key}_counts"])


@pytest.mark.parametrize("name", ["cag_anchors"])
def test_cag_anchors(golden: Golden, name: str) -> None:
    file = golden(f"proda/{name}")
    ignore = int(file["ignore_index"])
    features, logits = tensor(file["feat"]).requires_grad_(), tensor(file["logits"])
    anchors = tensor(file["anchors"])
    label = anchor_labels(features.detach(), anchors, float(file["margin"]))
    np.testing.assert_array_equal(label, labels(file["label_anchor"], ignore))
    prob = confident_labels(logits, float(file["prob_threshold"]))
    np.testing.assert_array_equal(prob, labels(file["label_prob"], ignore))

    found = class_vectors(features, logits, label)
    np.testing.assert_array_equal(found.valid, file["valid"] > 0)
    assert_values(found.vectors, file["vectors"])
    positions = features[0, 0].numel()
    clip = float(file["smooth_l1_clip"])
    loss = anchor_distance(found.vectors, found.valid, found.counts, anchors, positions, clip)
    assert_values(loss, file["loss_distance"], 1e-5)
    (gradient,) = torch.autograd.grad(loss, features)
    assert_gradient(gradient, file["grad_feat"], 1e-4)


@pytest.mark.parametrize("name", ["cag_anchors"])
def test_cag_labels_by_hand(golden: Golden, name: str) -> None:
    """The anchors' labels, position by position."""
    file = golden(f"proda/{name}")
    features, anchors = file["feat"].astype(np.float64), file["anchors"]
    label = anchor_labels(tensor(file["feat"]), tensor(file["anchors"]), float(file["margin"]))
    for image, y, x in product(*(range(side) for side in (features.shape[0], *features.shape[2:]))):
        distance = np.linalg.norm(features[image, :, y, x] - anchors, axis=1)
        first, second = np.sort(distance)[:2]
        if abs(second - first - float(file["margin"])) > 1e-4:
            sure = second - first >= float(file["margin"])
            assert int(label[image, y, x]) == (int(distance.argmin()) if sure else IGNORE)
