"""Making a `fit` or a `transform` stage: what is learnt of images without gradients, and images in another style."""

from __future__ import annotations

from typing import Any

import torch

from tutelage.annotate.class_means import AnchorsFit, MeansFit, fit_means
from tutelage.annotate.entropies import EntropiesFit, fit_entropies
from tutelage.annotate.mixtures import MixturesFit, fit_class_mixtures
from tutelage.annotate.stylised import stylise_dataset
from tutelage.annotate.transferability import TransferabilityFit, fit_transferability
from tutelage.data.copies import CopyFolder
from tutelage.data.dataset import Dataset
from tutelage.data.weights import WeightFolder
from tutelage.engine import collectives
from tutelage.errors import DataError
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.recipe.schema import FitStage, TransformStage
from tutelage.runs.atomic import write_json
from tutelage.runs.store import Artefact


def fit_stage(
    builder: Builder, stage: FitStage, artefact: Artefact, seed: int, device: torch.device, display: Display
) -> None:
    """Fit what the stage says, going on where an earlier run was interrupted, and write tensors and facts."""
    dataset = _images(builder, stage.data)
    what, on_unreadable = stage.what, builder.recipe.run.on_unreadable
    if not stage.masked():
        dataset = dataset.without_labels()
    net = _net(builder, stage, seed).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    files = [artefact.fitted]
    title = f"fit {what.kind}"
    images = len(dataset) if stage.target is None else 2 * len(dataset) + len(_images(builder, stage.target))
    with display.bar(title, images) as progress, net.inferring(stage.protocol.precision):
        common: dict[str, Any] = {"device": device, "on_unreadable": on_unreadable, "progress": progress}
        fitted, parts, protocol = artefact.fitted, artefact.parts, stage.protocol
        if isinstance(what, MeansFit | AnchorsFit):
            facts = fit_means(net, dataset, what, fitted, parts, protocol=protocol, **common)
        elif isinstance(what, MixturesFit):
            facts = fit_class_mixtures(net, dataset, what, fitted, parts, protocol=protocol, seed=seed, **common)
        elif isinstance(what, EntropiesFit):
            facts = fit_entropies(net, dataset, fitted, parts, protocol=protocol, **common)
        else:
            assert isinstance(what, TransferabilityFit)
            assert stage.target is not None
            computed = None if stage.entropies is None else builder.fitted(stage.entropies)
            files, facts = fit_transferability(
                net,
                dataset,
                _images(builder, stage.target).without_labels(),
                what,
                fitted,
                WeightFolder(artefact.folder),
                parts,
                seed=seed,
                entropy=None if computed is None else (computed["entropy"], computed["pixels"]),
                **common,
            )
    _tell(facts, display)
    collectives.barrier()
    if collectives.rank() == 0:
        write_json(artefact.fit_facts, facts)
        artefact.finish("fit", [*files, artefact.fit_facts], {"what": what.kind, "images": facts["images"]})
        artefact.clear_parts()


def transform_stage(
    builder: Builder, stage: TransformStage, artefact: Artefact, seed: int, device: torch.device, display: Display
) -> None:
    """Write a copy of the data in the style of the target; copies that are there are left."""
    source = _images(builder, stage.data)
    target = _images(builder, stage.target).without_labels()
    with display.bar("transform", len(source)) as progress:
        files, left_out = stylise_dataset(
            source,
            target,
            CopyFolder(artefact.folder).root,
            stage.style,
            seed=seed,
            device=device,
            on_unreadable=builder.recipe.run.on_unreadable,
            progress=progress,
        )
    _tell({"unreadable": left_out}, display)
    collectives.barrier()
    if collectives.rank() == 0:
        artefact.finish("transform", files, {"images": len(source) - len(left_out), "unreadable": left_out})


def _net(builder: Builder, stage: FitStage, seed: int) -> Segmentor:
    if stage.net is not None:
        return builder.trained_net(stage.net)
    assert stage.encoder is not None
    if builder.recipe.nets[stage.encoder].weights is None:
        builder.say(f"warning: net {stage.encoder!r} has random weights: its features tell little of an image")
    return builder.new_net(stage.encoder, seed)


def _images(builder: Builder, reference: str) -> Dataset:
    dataset = builder.dataset(reference)
    if not len(dataset):
        raise DataError(f"data set {reference!r} has no images", "check its list or folder")
    return dataset


def _tell(facts: dict[str, Any], display: Display) -> None:
    """Say what is missing: images that were left out, classes of which nothing was seen."""
    for key, what in (("unreadable", "images"), ("unreadable_target", "images of the target")):
        names = facts.get(key, [])
        if names:
            display.say(f"  {len(names)} {what} cannot be read and are left out: {_some(names)}")
    if facts.get("without_samples"):
        display.say(f"  nothing is fitted for: {', '.join(facts['without_samples'])} (no pixel, or too few)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
