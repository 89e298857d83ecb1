"""The pseudo-label audit while training: data, nets and records of :mod:`tutelage.audit.metrics`.

An :class:`Auditor` looks at every net that the method exports. It draws nothing, trains nothing and leaves every net
as it was, so that a training with audits makes the nets of one without. What it needs of the audit before (the labels
of that time) lies beside the checkpoints, and what it decides is read off its records: a run that was interrupted goes
on with both, and its records end up the same.
"""

# Legend: N images, K classes, H W pixels, C columns of a table of counts.

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.audit.images import AuditedImages, Truth
from tutelage.audit.metrics import (
    LabelledCounts,
    MapCounts,
    agreement_of,
    changed,
    collapses,
    count_maps,
    settled,
    thinned,
)
from tutelage.audit.records import (
    collapse_record,
    in_order,
    judged,
    lines_of,
    listed_shares,
    map_figures,
    rounded,
    shares_array,
    show,
    worst,
)
from tutelage.audit.settings import AuditSettings, StopRule
from tutelage.engine import collectives
from tutelage.engine.contract import Method
from tutelage.engine.log import TrainingLog, read_log
from tutelage.evaluation.confusion import confusion_of
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.levels import level_of
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.runs.atomic import writing
from tutelage.runs.store import Artefact

Maps = dict[int, NDArray[np.uint8]]
"""Number of the image → a net's predicted classes."""


@dataclass
class Auditor:
    """Audits one training; see the module's header."""

    settings: AuditSettings
    method: Method
    artefact: Artefact
    device: torch.device
    classes: Sequence[str]
    steps: int
    """Of the training."""
    every: int
    """Steps between two audits."""
    protocol: Protocol
    images: AuditedImages
    truth: Truth
    label_shares_K: NDArray[np.float64] | None
    """Share of each class among the labelled pixels that the training uses; ``None`` without any."""
    evaluated: tuple[int, ...] | None
    """The images of the truth that evaluation scores anyway, under the same protocol; ``None``: other images."""
    checkpoint_steps: Callable[[], Sequence[int]]
    """The steps from which the training may be resumed."""
    say: Callable[[str], None]
    records: list[dict[str, Any]] = field(default_factory=list)
    _before: dict[str, Maps] = field(default_factory=dict)
    _watched: dict[str, LabelledCounts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.artefact.audit_log if collectives.rank() == 0 else None
        self._log = TrainingLog(path)
        self._levels_K = [level_of(self.settings.threshold)] * len(self.classes)

    def begin(self, step: int) -> None:
        """Drop the audits after ``step``, where the run resumes, and load those before."""
        self._log.begin(step)
        path = self.artefact.audit_log
        kept = read_log(path) if path.is_file() else []
        self.records = [record for record in kept if record["step"] <= step]
        self._before = self._stored(self.records[-1]["step"]) if self.records else {}
        if self.truth.note:
            off = "" if self.truth.dataset is not None else "precision and calibration are off: "
            self.say(f"audit: {off}{self.truth.note}")

    def watch(self, step: int) -> Mapping[str, LabelledCounts]:
        """Net → counter to which an evaluation after ``step`` shows its logits, where an audit uses the same images."""
        if step != self.steps and step % self.every:
            return {}
        if self.truth.dataset is not None and self.evaluated == self.truth.indices:
            self._watched = {name: self._counter() for name in self.method.exported()}
        return self._watched

    def audit(self, step: int) -> bool:
        """Audit all nets and record the result; returns whether training shall end here."""
        nets = _nets(self.method)
        images, agreement = self._look(step, nets)
        record: dict[str, Any] = {
            "step": step,
            "data": self.images.title,
            "images": len(self.images.images),
            "threshold": self.settings.threshold,
            "val": self.truth.title if self.truth.dataset is not None else None,
            "val_images": len(self.truth.indices),
            "val_note": self.truth.note,
            "label_shares": None if self.label_shares_K is None else listed_shares(self.label_shares_K),
            "nets": images,
            "agreement": agreement,
            "warnings": [],
        }
        for name, net in nets.items():
            figures = images[name]
            counts: MapCounts = figures.pop("counts")
            figures["worst"] = worst(counts.confidences, self.images.name)
            if self.truth.dataset is not None:
                figures["val"] = self._judge(name, net)
            earlier = [shares_array(it["nets"][name]["shares"]) for it in self.records]
            reference_K = self.label_shares_K if self.label_shares_K is not None else next(iter(earlier), None)
            found = collapses(counts, reference_K, earlier)
            record["warnings"] += [{"net": name, **collapse_record(one)} for one in found]
        rule = self.settings.stop or StopRule()
        judged_nets = [] if self.truth.dataset is None else list(nets)
        course = [*self.records, record]
        record["settled"] = settled(
            {name: [it["nets"][name]["change"] for it in course] for name in nets},
            {name: [it["nets"][name]["val"]["sure"]["share"] for it in course] for name in judged_nets},
            rule.change,
            rule.rounds,
        )
        self._log.record(record)
        self.records.append(record)
        for line in lines_of(record, self.classes):
            self.say(f"  {line}")
        ends = bool(collectives.from_first("yes" if record["settled"] and self.settings.stop is not None else ""))
        if ends and step < self.steps:
            self.say(f"  the pseudo labels have settled: training ends after step {step}")
        elif record["settled"] and not any(it["settled"] for it in course[:-1]):
            self.say(f"  the pseudo labels have settled: training could stop at step {step}")
        if collectives.rank() == 0:
            self._forget()
        return ends

    def _look(self, step: int, nets: Mapping[str, Segmentor]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Figures by net, and agreement by pair of nets, of the images without masks."""
        pairs = list(itertools.combinations(nets, 2))
        classes = len(self._levels_K)
        mine = range(len(self.images.images))[collectives.rank() :: collectives.world()]
        counted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in nets}
        now: dict[str, Maps] = {name: {} for name in nets}
        together = {pair: torch.zeros((classes, classes), dtype=torch.int64) for pair in pairs}
        with ExitStack() as inferring:
            for net in nets.values():
                inferring.enter_context(net.inferring(self.protocol.precision))
            for place in mine:
                image = self.images.image(place)
                said_by = {}
                for name, net in nets.items():
                    label_HW, confidence_HW = predict_labels(net, image, self.protocol, self.device, confidence=True)
                    assert confidence_HW is not None
                    said_by[name], now[name][place] = torch.from_numpy(label_HW), thinned(label_HW)
                    before = self._before.get(name, {}).get(place)
                    same_size = before is not None and before.shape == now[name][place].shape
                    change = changed(before, now[name][place]) if same_size and before is not None else (0, 0)
                    row = [*count_maps(label_HW, confidence_HW, self._levels_K), *change]
                    counted[name].append(np.array(row, dtype=np.int64))
                for one, other in pairs:
                    together[one, other] += confusion_of(said_by[one], said_by[other], classes)
        # Before the processes meet below: once one of them has a record, the maps of all are there.
        self._store(step, now)
        self._before = now
        result = {}
        for name in nets:
            rows = np.stack(counted[name]) if counted[name] else np.zeros((0, 2 * classes + 4), dtype=np.int64)
            table_NC = self._gathered(torch.from_numpy(rows), mine).cpu().numpy()
            counts = MapCounts(table_NC[:, :-2])
            different, compared = (int(column.sum()) for column in (table_NC[:, -2], table_NC[:, -1]))
            result[name] = {
                **map_figures(counts),
                "change": rounded(different / compared) if compared else None,
                "counts": counts,
            }
        agreement = {}
        for (one, other), matrix in together.items():
            agreed = agreement_of(collectives.sum_over_ranks(matrix.to(self.device)).cpu())
            agreement[f"{one}/{other}"] = {"share": rounded(agreed.share), "iou": rounded(agreed.iou)}
        return result, agreement

    def _judge(self, name: str, net: Segmentor) -> dict[str, Any]:
        """Figures of one net on labelled images; those of the evaluation at the same step, where they serve."""
        watched = self._watched.pop(name, None)
        if watched is None:
            watched = self._counter()
            show(net, self.truth, self.protocol, self.device, watched)
        return judged(watched, self.truth, self.device)

    def _counter(self) -> LabelledCounts:
        return LabelledCounts(self._levels_K, len(self.truth.indices))

    def _gathered(self, rows: Tensor, mine: Sequence[int]) -> Tensor:
        return in_order(rows, torch.tensor(list(mine), dtype=torch.int64), self.device)

    # What is kept from one audit to the next

    def _store(self, step: int, maps: Mapping[str, Maps]) -> None:
        arrays = {f"{name}/{place}": labels for name, of_net in maps.items() for place, labels in of_net.items()}
        with writing(self.artefact.audited_maps(step, collectives.rank())) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def _stored(self, step: int) -> dict[str, Maps]:
        """The maps of an audit, of however many processes."""
        result: dict[str, Maps] = {}
        try:
            for path in self.artefact.all_audited_maps(step):
                with np.load(path, allow_pickle=False) as content:
                    for key in content.files:
                        name, _, place = key.rpartition("/")
                        result.setdefault(name, {})[int(place)] = content[key]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.say(f"audit: the labels of step {step} are damaged ({error})")
            result = {}
        if not result:
            self.say(f"audit: the labels of step {step} are gone; the next audit has nothing to compare with")
        return result

    def _forget(self) -> None:
        """Remove maps that no resumed run can need: all but the last before the oldest checkpoint, and what follows."""
        floor = min(self.checkpoint_steps(), default=0)
        self.artefact.forget_audited_maps([step for step in self.artefact.audited_steps() if step <= floor][:-1])


def _nets(method: Method) -> dict[str, Segmentor]:
    nets = {}
    for name, net in method.exported().items():
        assert isinstance(net, Segmentor)
        nets[name] = net
    return nets
