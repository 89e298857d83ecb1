"""Folder cirkd: every published net with weights made by the folder's rule."""

from __future__ import annotations

import csv
import os
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.compare import assert_values, tensor
from tests.golden.conftest import Golden
from tutelage.nets.build import build
from tutelage.nets.published.cirkd_checkpoint import import_checkpoint
from tutelage.nets.published.nets import NETS, published_name
from tutelage.nets.segmentor import Segmentor

Row = dict[str, str]
GIVEN = sorted(set(NETS) - {"pspnet_resnet101_v1", "pspnet_resnet101_v2"})
KEPT = ("mean", "std")  # ours alone
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Row]]:
    """Net → published name of a tensor → its row in ``net_tensors.csv``."""
    root = os.environ.get("TUTELAGE_GOLDEN") or Path(__file__).parents[2] / ".." / "shared" / "golden"
    path = Path(root).resolve() / "cirkd" / "net_tensors.csv"
    if not path.is_file():
        pytest.skip(f"no golden file {path} (the variable TUTELAGE_GOLDEN names the folder)")
    nets: dict[str, dict[str, Row]] = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            nets[row["net"]][row["published_checkpoint_key"]] = row
    return nets


def by_rule(row: Row, shape: torch.Size, salt: int) -> Tensor:
    """The tensor that the folder's README describes."""
    x = np.arange(shape.numel(), dtype=np.uint32) + np.uint32((zlib.crc32(row["tensor"].encode()) + salt) % 2**32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    values = x * (2 / 2**32) - 1
    fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
    offset, factor = {
        "weight": (0, np.sqrt(3 / fan_in)),
        "bias": (0, 0.1),
        "norm_bias": (0, 0.1),
        "norm_weight": (1, 0.1),
        "running_mean": (0, 0.05),
        "running_var": (1, 0.2),
    }[row["kind"]]
    return torch.from_numpy((offset + factor * values).astype(np.float32).reshape(shape))


def published_tensors(net: Segmentor, rows: dict[str, Row], salt: int) -> dict[str, Tensor]:
    """A published file's content for ``net``; names and shapes are compared on the way."""
    own = {
        published_name(name, net.settings): value
        for name, value in net.state_dict().items()
        if name not in KEPT and not name.endswith(COUNTER)
    }
    assert set(own) == set(rows)
    for key, row in rows.items():
        theirs = [int(side) for side in row["shape"].split("x")]
        given = slice(1 if row["tensor"].rpartition(".")[0].endswith("classifier") else 0, None)  # classes vary
        assert list(own[key].shape)[given] == theirs[given], key
    return {key: by_rule(row, own[key].shape, salt) for key, row in rows.items()}


@pytest.mark.parametrize("name", GIVEN)
def test_net(golden: Golden, rows: dict[str, dict[str, Row]], name: str) -> None:
    file = golden(f"cirkd/net_{name}")
    net = build(NETS[name].model_copy(update={"normalisation": "none"}), int(file["num_classes"]), seed=0).eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == int(file["parameters"])
    given = published_tensors(net, rows[name], int(file["salt"]))
    net.load_state_dict(
        {
            key: value if key in KEPT or key.endswith(COUNTER) else given[published_name(key, net.settings)]
            for key, value in net.state_dict().items()
        }
    )
    with torch.no_grad():
        prediction = net(tensor(file["input"]))
    assert_values(prediction.logits, file["logits"], absolute=1e-5)
    assert (prediction.auxiliary is not None) == ("aux_logits" in file)
    if prediction.auxiliary is not None:
        assert_values(prediction.auxiliary, file["aux_logits"], absolute=1e-5)
    feature = prediction.embedding
    assert feature.shape[1] == net.embedding_channels == int(file["feature_channels"])
    assert_values(feature[:, :: int(file["feature_channel_stride"])], file["feature"], absolute=1e-5)
    assert_values(feature.mean(), file["feature_mean"], absolute=1e-5)
    assert_values(feature.abs().mean(), file["feature_abs_mean"], absolute=1e-5)


@pytest.mark.parametrize("name", ["deeplabv3_resnet18_v1", "deeplabv3_mobilevit_xxs"])
def test_a_published_file_is_imported(
    golden: Golden, rows: dict[str, dict[str, Row]], name: str, tmp_path: Path
) -> None:
    file = golden(f"cirkd/net_{name}")
    classes = int(file["num_classes"])
    given = published_tensors(build(NETS[name], classes, seed=0), rows[name], int(file["salt"]))
    path = tmp_path / "published.pth"
    torch.save({f"module.{key}": value for key, value in given.items()}, path)
    net, report = import_checkpoint(path, name, classes)
    assert (report.tensors, report.unused) == (len(given), ())
    # The stored input is what the first layer sees; the net makes it of RGB in 0..1.
    picture = tensor(file["input"]).flip(1) * net.std + net.mean
    with torch.no_grad():
        assert_values(net(picture).logits, file["logits"], relative=1e-3, absolute=1e-5)
