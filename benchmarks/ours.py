"""The same training as :mod:`benchmarks.plain`, through tutelage's engine; the last line is JSON."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.common import street_data
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.stream import LoaderSettings, Stream
from tutelage.engine.contract import TaskInfo
from tutelage.engine.loop import Callbacks, fit
from tutelage.engine.meter import peak_memory
from tutelage.engine.settings import FitSettings, OptimizerSettings
from tutelage.methods.settings.supervised import SupervisedSettings
from tutelage.methods.supervised import Supervised
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings


def main() -> None:
    """Train and print the time of a step and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--cache", default="none")
    parser.add_argument("--warm-up", type=int, default=5)
    given = parser.parse_args()
    data, _ = street_data()
    colour = ColourSettings(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    stream = Stream(
        "labeled",
        [data["train"]],
        0,
        given.batch,
        {"weak": ViewSettings(colour=colour)},
        AugmentSettings(crop=(given.crop, given.crop), scale=(0.5, 2.0), flip=0.5),
        loader=LoaderSettings(workers=given.workers, ahead=4, cache=given.cache),
    )
    weights = "packaged" if "lite" in given.encoder else None
    net = build(NetSettings(encoder=given.encoder, decoder="deeplabv3plus", weights=weights), 11, seed=0)
    method = Supervised({"student": net}, SupervisedSettings(), TaskInfo(11))
    settings = FitSettings(
        steps=given.steps,
        precision=given.precision,
        optimizer=OptimizerSettings(lr=2e-3, encoder_lr_ratio=0.25),
        log_every=1,
    )
    marks: list[tuple[float, dict[str, Any]]] = []
    callbacks = Callbacks(log_line=lambda record: marks.append((time.perf_counter(), record)))
    device = torch.device("cpu")
    fit(method, {"labeled": stream}, settings, seed=0, device=device, callbacks=callbacks)
    timed = marks[given.warm_up :]
    spent = timed[-1][0] - marks[given.warm_up - 1][0]
    wait = sum(record["data_wait"] * record["spent_s"] for _, record in timed) / spent
    print(json.dumps({"step_s": spent / len(timed), "data_wait": wait, "peak_rss_mib": peak_memory(device)}))


if __name__ == "__main__":
    main()
