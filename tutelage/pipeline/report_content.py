"""Gathers what the report of a recipe shows: scores, courses of training, costs, pictures, identities.

Everything except latency is read or computed from finished artefacts. The nets are run again on the few images of
the galleries, because predictions are not stored.
"""

# Legend: N images of the data set, K classes, H W pixels.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.audit.report_content import label_rounds
from tutelage.audit.section import AuditSection
from tutelage.data.dataset import Dataset
from tutelage.errors import RunError
from tutelage.evaluation.evaluate import Counts, blocks_of, read_counts, under_names
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.intervals import Figure, Gain, Interval, miou_of_counts, paired_bootstrap
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.costs import environment, measured
from tutelage.recipe.loading import resolved
from tutelage.recipe.references import all_before
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.report import ReportStage
from tutelage.report.content import (
    ClassInfo,
    Figures,
    Gallery,
    GalleryImage,
    GroupedQuality,
    Grouping,
    Identity,
    Quality,
    Reliability,
    ReportContent,
    ScoredNet,
    Section,
)
from tutelage.report.pictures import shrunk
from tutelage.runs.store import Artefact

_NEIGHBOURHOOD = 15
"""The most neighbours to skip on either side of a shown image."""


@dataclass(frozen=True)
class Roles:
    """The labels of student, baseline and teacher; the last two are optional."""

    student: str
    baseline: str | None
    teacher: str | None


def report_content(builder: Builder, stage: ReportStage, device: torch.device) -> ReportContent:
    """The content of the report of ``stage``; its inputs must be finished.

    Raises :class:`RunError` for missing or damaged scores, :class:`DataError` for missing or damaged images.
    """
    evaluation: EvaluateStage = builder.runner(stage.scores).stage
    scored, references = builder.artefacts[stage.scores], evaluation.scored()
    names = builder.classes.names
    scores = {label: under_names(_read_score(scored, label), names) for label in references}
    roles = roles_of(stage, list(references))
    dataset = builder.dataset(evaluation.data)
    nets = {label: _on(builder.trained_net(reference), device) for label, reference in references.items()}
    size = dataset.image(0).shape[:2]
    costs, setting = measured(nets, evaluation.protocol, (size[0], size[1]), device)
    trainings = {reference.partition(".")[0] for reference in references.values()}
    pictures, galleries = _galleries(scored, roles, nets, dataset, evaluation.protocol, stage.images, device)
    student = scores[roles.student]
    confusion = np.array(student["confusion"], dtype=np.int64)
    return ReportContent(
        title=builder.recipe.name,
        classes=_classes(student, confusion),
        nets=tuple(
            ScoredNet(
                label=label,
                quality=_quality(scores[label]),
                architecture=f"{net.settings.encoder} + {net.settings.decoder}",
                key=str(scores[label].get("net", "")),
                cost=costs[label],
                stage=references[label].partition(".")[0],
            )
            for label, net in nets.items()
        ),
        student=roles.student,
        baseline=roles.baseline,
        teacher=roles.teacher,
        identity=_identity(student, evaluation.data, scored.key),
        comparison=_comparison(scored, roles),
        groupings=_groupings(evaluation, scored, scores, roles),
        confusion=confusion,
        trainings=tuple(
            course
            for name in builder.recipe.stages
            if name in trainings and (course := builder.runner(name).course(evaluation.data)) is not None
        ),
        sections=_sections(builder, stage, device),
        pictures=pictures,
        galleries=galleries,
        cost_setting=setting,
        environment=environment(device),
        recipe=resolved(builder.recipe),
    )


def _sections(builder: Builder, stage: ReportStage, device: torch.device) -> tuple[Section, ...]:
    """The audits of all stages that led to the scored nets."""
    runners = [builder.runner(name) for name in all_before(builder.recipe, stage.scores)]
    audits = [audit for it in runners if (audit := it.audit(stage.images, device)) is not None]
    rounds = [found for it in runners if (found := it.label_round()) is not None]
    if rounds:
        audits.append(label_rounds(rounds, builder.classes.names, stage.images))
    return (AuditSection(tuple(audits)),) if audits else ()


def roles_of(stage: ReportStage, labels: Sequence[str]) -> Roles:
    """The roles of the scored nets: as in the recipe, else the last is the student and the first the baseline.

    A net with another role is never the baseline, so there may be no baseline.
    """
    student = stage.student or labels[-1]
    others = [label for label in labels if label not in (student, stage.teacher)]
    baseline = stage.baseline or (others[0] if others else None)
    return Roles(student, None if baseline == student else baseline, stage.teacher)


# Scores


def _read_score(scored: Artefact, label: str) -> dict[str, Any]:
    path = scored.score(label)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError("file-damaged", f"cannot read scores: {path} ({error})", "run the evaluation again") from None
    return dict(content)


def _figures(values: Iterable[Figure]) -> Figures:
    return tuple(None if value is None else float(value) for value in values)


def _quality(score: Mapping[str, Any]) -> Quality:
    boundary, curve = score.get("boundary"), score.get("calibration")
    return Quality(
        miou=score["miou"],
        interval=_bounds(score["miou_interval"]),
        miou_all=score["miou_all"],
        pixel_accuracy=score["pixel_accuracy"],
        mean_accuracy=score["mean_accuracy"],
        iou=_figures(score["iou"]),
        accuracy=_figures(score["accuracy"]),
        precision=_figures(score["precision"]),
        absent=score["absent"],
        boundary_miou=boundary and boundary["miou"],
        boundary_iou=_figures(boundary["iou"]) if boundary else (),
        reliability=curve
        and Reliability(
            curve["error"], _figures(curve["confidence"]), _figures(curve["accuracy"]), _figures(curve["count"])
        ),
    )


def _bounds(given: Mapping[str, Any] | None) -> Interval | None:
    """An interval; None where an older score has none."""
    return None if given is None else Interval(**given)


def _groupings(
    stage: EvaluateStage, scored: Artefact, scores: Mapping[str, Mapping[str, Any]], roles: Roles
) -> tuple[Grouping, ...]:
    """The subsets of the evaluation, in the recipe's order, then its merged classes."""
    found = []
    for name, classes in stage.subsets.items():
        nets = {label: _grouped(score["subsets"][name]) for label, score in scores.items()}
        ids = [scores[roles.student]["classes"].index(one) for one in classes]
        comparison = _comparison(scored, roles, partial(_some, ids=ids))
        found.append(Grouping(name, tuple(classes), {}, nets, comparison))
    if stage.merged:
        nets = {label: _grouped(score["merged"]) for label, score in scores.items()}
        groups = {name: tuple(members) for name, members in stage.merged.items()}
        classes = scores[roles.student]["merged"]["classes"]
        comparison = _comparison(scored, roles, lambda counts: counts.merged_NG3)
        found.append(Grouping(", ".join(groups), tuple(classes), groups, nets, comparison))
    return tuple(found)


def _some(counts: Counts, ids: Sequence[int]) -> NDArray[np.int64]:
    return counts.counts_NK3[:, list(ids)]


def _grouped(score: Mapping[str, Any]) -> GroupedQuality:
    return GroupedQuality(score["miou"], _bounds(score.get("miou_interval")), _figures(score.get("iou", ())))


def _classes(score: Mapping[str, Any], confusion: NDArray[np.int64]) -> tuple[ClassInfo, ...]:
    pixels = confusion.sum(axis=1)
    colours = ((int(red), int(green), int(blue)) for red, green, blue in score["palette"])
    return tuple(ClassInfo(*one) for one in zip(score["classes"], colours, map(int, pixels), strict=True))


def _identity(score: Mapping[str, Any], data: str, key: str) -> Identity:
    protocol, of_data = score["protocol"], score["data"]
    return Identity(protocol["text"], protocol["key"], data, of_data["fingerprint"], of_data["images"], key)


def _comparison(
    scored: Artefact,
    roles: Roles,
    pick: Callable[[Counts], NDArray[np.int64] | None] = lambda counts: counts.counts_NK3,
) -> Gain | None:
    """Student against baseline, by the selected counts, where both have them."""
    if roles.baseline is None:
        return None
    sides = [read_counts(scored.counts(label)) for label in (roles.baseline, roles.student)]
    before, after = (pick(counts) for counts in sides)
    if before is None or after is None:
        return None
    blocks = blocks_of(sides[1].groups)
    return paired_bootstrap(before, after, blocks)


# Pictures


def _galleries(
    scored: Artefact,
    roles: Roles,
    nets: Mapping[str, Segmentor],
    dataset: Dataset,
    protocol: Protocol,
    count: int,
    device: torch.device,
) -> tuple[tuple[GalleryImage, ...], tuple[Gallery, ...]]:
    """The most changed, the worst and the best images, with the nets' predictions."""
    shown = [label for label in (roles.baseline, roles.student, roles.teacher) if label is not None]
    scores_N = {label: miou_of_counts(read_counts(scored.counts(label)).counts_NK3) for label in dict.fromkeys(shown)}
    places: dict[int, int] = {}
    galleries = []
    for title, text, picks in picked(scores_N, roles, count):
        indices = tuple(places.setdefault(pick, len(places)) for pick in picks)
        galleries.append(Gallery(title, text, indices))
    pictures = [_picture(dataset, pick, nets, scores_N, protocol, device) for pick in places]
    return tuple(pictures), tuple(galleries)


def picked(
    scores_N: Mapping[str, NDArray[np.float64]], roles: Roles, count: int
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Title, text and images of each gallery of ``count`` images; a single gallery where there are no more images."""
    student_N = scores_N[roles.student]
    total = len(student_N)
    if count == 0 or total == 0:
        return []
    if total <= count:
        return [("All images", "Each with its mIoU.", tuple(range(total)))]
    apart = min(total // (4 * count), _NEIGHBOURHOOD)
    skipped = f" Images within {apart} places of a shown image are skipped." if apart else ""
    name = roles.student
    result = []
    if roles.baseline is not None:
        change_N = np.abs(student_N - scores_N[roles.baseline])
        text = f"The mIoU of {name} differs most from that of {roles.baseline}, in either direction.{skipped}"
        result.append(("Most changed", text, _spread(-change_N, count, apart)))
    result.append(("Worst", f"The lowest mIoU of {name}.{skipped}", _spread(student_N, count, apart)))
    result.append(("Best", f"The highest mIoU of {name}.{skipped}", _spread(-student_N, count, apart)))
    return result


def _spread(values_N: NDArray[np.float64], count: int, apart: int) -> tuple[int, ...]:
    """The ``count`` lowest values that are more than ``apart`` places from each other; NaN is skipped."""
    chosen: list[int] = []
    for index in np.argsort(values_N, kind="stable").tolist():
        if len(chosen) == count or np.isnan(values_N[index]):
            break
        if all(abs(index - other) > apart for other in chosen):
            chosen.append(index)
    return tuple(chosen)


def _picture(
    dataset: Dataset,
    index: int,
    nets: Mapping[str, Segmentor],
    scores_N: Mapping[str, NDArray[np.float64]],
    protocol: Protocol,
    device: torch.device,
) -> GalleryImage:
    image = dataset.image(index)
    maps = {"": dataset.label(index)}
    for label in scores_N:
        with nets[label].inferring(protocol.precision) as net:
            maps[f"={label}"], _ = predict_labels(net, image, protocol, device)
    small, ids = shrunk(image, maps)
    own = {label: float(values[index]) for label, values in scores_N.items()}
    return GalleryImage(
        dataset.samples[index].name, small, ids[""], {label: ids[f"={label}"] for label in scores_N}, own
    )


def _on(net: Segmentor, device: torch.device) -> Segmentor:
    moved: Segmentor = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
