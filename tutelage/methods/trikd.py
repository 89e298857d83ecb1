"""TriKD: three architectures teach one another on unlabelled images, and the small one is the result.

    L = w_s OHEM(student) + w_c OHEM(cnn) + w_v CE(vit)                             labelled images
      + c * sum over views a, and the other views b, of CE(p_a, argmax p_b)         unlabelled images, six terms
      + l_low * mean over elements of (P f_student - f_cnn)^2                       both; f the feature at stride 4
      + l_high * KL(softmax A_vit || softmax up(Q A_student))                       both; A the last attention's logits

Features and attention of the cnn and the vit get no gradient; P and Q are 1x1 convolutions that bring channels and
heads to theirs. The labelled and the unlabelled batch go through each net one after the other, with batch statistics
of their own. Where a net has no attention (three ConvNets), the last term is off.

View by view, a step has three passes, one for each net, so that the activations of one net alone are held. The first
pass also forwards the other nets, without a gradient; the other passes need only its class maps. Dropout is drawn
by view and stream in both forms, so that their gradients are equal. Source: the code of TriKD (arXiv 2309.12557).
"""

# Legend: B images, K classes, H W pixels, C channels, h w a feature's grid, n heads, N tokens.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.data.draws import key
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.engine.settings import ScheduleSettings
from tutelage.errors import RecipeError, TutelageError
from tutelage.losses.consistency import cross_pseudo_supervision
from tutelage.losses.cross_architecture import Grid, attention_loss, spatial_loss
from tutelage.losses.resize import over_image
from tutelage.methods.distillation.projection import Projection
from tutelage.methods.settings.trikd import VIEWS, TriKDSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.attention import AttentionTap, attention_tap
from tutelage.nets.modes import keeping_statistics
from tutelage.nets.segmentor import Prediction, Segmentor

STREAMS = ("labeled", "unlabeled")
ATTENTION_WEIGHT = 0.5


class ViewOutput(NamedTuple):
    """The predictions of a view on a labelled and an unlabelled batch."""

    labeled: Prediction
    unlabeled: Prediction
    logits_BKHW: Tensor
    """Those of the unlabelled batch at the size of its images."""


class AttentionMap(NamedTuple):
    """The last attention of a view on one batch."""

    logits_BnNN: Tensor
    grid: Grid


class PeerTargets(NamedTuple):
    """The outputs of a view that the other views imitate, without gradients."""

    classes_BHW: Tensor
    """The class map of the unlabelled batch."""
    features: tuple[Tensor, ...]
    """(B, C, h, w) of both batches, where they are imitated."""
    attention: tuple[AttentionMap, ...]
    """Of both batches, where it is imitated."""


class TriKD(Method):
    """Few labels and many images: a small student, a ConvNet and a transformer learn from one another."""

    Settings = TriKDSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: TriKDSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student, self.cnn, self.vit = (nets[name] for name in VIEWS)
        self.task = TaskLoss(settings.task, info)
        self.vit_task = TaskLoss(settings.vit_task, info)
        self.settings = settings
        self.weights = {"student": settings.student_weight, "cnn": settings.cnn_weight, "vit": settings.vit_weight}
        self.info = info
        self.projections = nn.ModuleDict()
        self.levels = {name: _level(self._net(name), settings.spatial_stride) for name in ("student", "cnn")}
        if settings.spatial_weight:
            mine, theirs = (self._net(name).feature_channels[level] for name, level in self.levels.items())
            self.projections["spatial"] = Projection(nn.Conv2d(mine, theirs, 1))
        self.attention_weight, self.attention, self.why_not = self._attention()
        if self.attention:
            mine, theirs = (self.attention[name].heads for name in ("student", "vit"))
            self.projections["attention"] = Projection(nn.Conv2d(mine, theirs, 1))

    def passes(self, step: int) -> tuple[Pass, ...]:
        """All nets at once, or one after the other."""
        if self.settings.view_wise:
            return Pass("student", {"student", "projections"}), Pass("cnn", {"cnn"}), Pass("vit", {"vit"})
        return (Pass("train", {*VIEWS, "projections"}),)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One for each net; the projections go with the student."""
        settings = self.settings
        constant = ScheduleSettings(kind="constant") if settings.vit_schedule == "published" else None
        return {
            "main": OptimizerSpec(("student", "projections")),
            "cnn": OptimizerSpec(("cnn",), settings.cnn_optimizer),
            "vit": OptimizerSpec(("vit",), settings.vit_optimizer, constant),
        }

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and the other views beside it."""
        return {name: self._net(name) for name in VIEWS}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The divisors of the means over labels, and over pixels without labels."""
        label = batches["labeled"]["weak"].label
        return {
            "labeled": self.task.counts(label),
            "labeled_vit": self.vit_task.counts(label),
            "unlabeled": self._counted(batches["unlabeled"]["weak"]).sum().float(),
        }

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled and one unlabelled batch: all views, or the turn of one of them."""
        views = {stream: batches[stream]["weak"] for stream in STREAMS}
        if pass_name in ("cnn", "vit"):
            classes = {name: context.carry[name] for name in VIEWS if name != pass_name}
            return self._label_and_cps_losses(
                pass_name, self._forward_view(pass_name, views, context), classes, views, context
            )
        outputs, targets = {}, {}
        for name in reversed(VIEWS):  # the student last, so that its graph is not held while the others run
            if pass_name in ("train", name):
                outputs[name] = self._forward_view(name, views, context)
                targets[name] = self._peer_targets(name, outputs[name])
            else:
                with torch.no_grad(), keeping_statistics(self._net(name)):
                    targets[name] = self._peer_targets(name, self._forward_view(name, views, context))
        classes = {name: each.classes_BHW for name, each in targets.items()}
        if pass_name != "train":
            context.carry.update(classes)
        terms = {}
        for name, output in outputs.items():
            terms.update(self._label_and_cps_losses(name, output, classes, views, context))
        terms.update(self._imitation_losses(outputs["student"], targets))
        return terms

    def _forward_view(self, name: str, views: Mapping[str, View], context: StepContext) -> ViewOutput:
        """A view of both batches, with dropout that depends on nothing else."""
        net = self._net(name)
        with _drawing(context, name, "labeled"):
            labeled = net(views["labeled"].image)
        with _drawing(context, name, "unlabeled"):
            unlabeled = net(views["unlabeled"].image)
        rule = self._task(name).settings.resize
        logits_BKHW = over_image(unlabeled.logits, views["unlabeled"].image, rule, net.stride)
        return ViewOutput(labeled, unlabeled, logits_BKHW)

    @torch.no_grad()
    def _peer_targets(self, name: str, output: ViewOutput) -> PeerTargets:
        """The class map of a view, and its features or attention where they are imitated."""
        both = (output.labeled, output.unlabeled)
        features: tuple[Tensor, ...] = ()
        attention: tuple[AttentionMap, ...] = ()
        if name == "cnn" and "spatial" in self.projections:
            features = tuple(prediction.features[self.levels[name]] for prediction in both)
        if name == "vit" and self.attention:
            attention = tuple(self._attention_of(name, prediction) for prediction in both)
        return PeerTargets(output.logits_BKHW.argmax(1), features, attention)

    def _label_and_cps_losses(
        self,
        name: str,
        output: ViewOutput,
        classes: Mapping[str, Tensor],
        views: Mapping[str, View],
        context: StepContext,
    ) -> dict[str, Tensor]:
        """A view learns from labels, and from the class maps of the others."""
        task, total = self._task(name), "labeled_vit" if name == "vit" else "labeled"
        supervised = task(output.labeled, self._net(name).stride, views["labeled"].label, context.normalizer(total))
        prefix = "" if name == "student" else f"{name}_"
        terms = {f"{prefix}{term}": self.weights[name] * value for term, value in supervised.items()}
        counted_BHW = self._counted(views["unlabeled"])
        losses = [
            cross_pseudo_supervision(output.logits_BKHW, classes[other], counted_BHW)
            for other in VIEWS
            if other != name
        ]
        share = counted_BHW.sum() / context.normalizer("unlabeled")  # a mean over the step's pixels, not this slice's
        terms[f"{prefix}cps"] = self.settings.cps_weight * share * torch.stack(losses).sum()
        return terms

    def _imitation_losses(self, output: ViewOutput, targets: Mapping[str, PeerTargets]) -> dict[str, Tensor]:
        """The student imitates the early features of the cnn and the last attention of the vit."""
        both = (output.labeled, output.unlabeled)
        settings, terms = self.settings, {}
        if "spatial" in self.projections:
            project = self.projections["spatial"]
            losses, sizes = [], []
            for prediction, theirs in zip(both, targets["cnn"].features, strict=True):
                mine = project(prediction.features[self.levels["student"]])
                losses.append(spatial_loss(mine, theirs, relative=settings.spatial_scale == "variance"))
                sizes.append(theirs.numel())
            terms["spatial"] = settings.spatial_weight * _pooled(losses, sizes)
        if "attention" in self.projections:
            how, mean = settings.attention_resize, settings.kl
            losses, sizes = [], []
            for prediction, vit in zip(both, targets["vit"].attention, strict=True):
                student = self._attention_of("student", prediction)
                mine_BnNN, grids = self.projections["attention"](student.logits_BnNN), (student.grid, vit.grid)
                losses.append(attention_loss(mine_BnNN, vit.logits_BnNN, grids=grids, resize=how, mean=mean))
                compared = mine_BnNN if how == "pool" else vit.logits_BnNN
                sizes.append(compared.numel() if mean == "elements" else compared[..., 0].numel())
            terms["attention"] = self.attention_weight * _pooled(losses, sizes)
        return terms

    def _attention_of(self, name: str, prediction: Prediction) -> AttentionMap:
        tap = self.attention[name]
        return AttentionMap(tap.logits(prediction.taps), tap.grid(prediction))

    def _attention(self) -> tuple[float, dict[str, AttentionTap], str]:
        """The weight of the attention loss, where attention is read, and why it is not.

        Raises :class:`RecipeError` where a weight is set and a net has no attention.
        """
        asked = self.settings.attention_weight
        if asked == 0:
            return 0.0, {}, "attention_weight is 0"
        taps, lacking = {}, []
        for name in ("student", "vit"):
            net = self._net(name)
            try:
                tap = attention_tap(net)
                reason = f"net {name} ({net.settings.encoder} + {net.settings.decoder}) has no attention of all to all"
            except TutelageError as error:
                tap, reason = None, f"net {name}: {error.message}"
            if tap is None:
                lacking.append(reason)
            else:
                taps[name] = tap
        if lacking and asked is not None:
            raise RecipeError(
                "net-without-attention",
                f"attention_weight is {asked:g}, but {'; '.join(lacking)}",
                "for both nets, use a plain vision transformer, or tiny_vit_11m_224 or tiny_vit_21m_512 with decoder "
                "dual_frequency; or leave attention_weight out",
            )
        if lacking:
            return 0.0, {}, "; ".join(lacking)
        for name, tap in taps.items():
            net = self._net(name)
            net.tap((*net.taps, tap.name))
        return ATTENTION_WEIGHT if asked is None else asked, taps, ""

    def extra_report(self) -> dict[str, Any]:
        """The projections, and the terms that are off."""
        size = None if self.info.size is None else self.info.size()
        lines = [
            "a step forwards each of three nets twice, "
            + ("one net after the other, two of them twice more" if self.settings.view_wise else "all held at once")
        ]
        if "spatial" in self.projections:
            mine, theirs = (self._feature(name, size) for name in ("student", "cnn"))
            lines.append(f"spatial: student {mine} is projected and resized to cnn {theirs}")
        else:
            lines.append("spatial: off, spatial_weight is 0")
        if self.attention:
            mine, theirs = (self._heads(name, size) for name in ("student", "vit"))
            lines.append(
                f"attention: student {mine} is projected to vit {theirs}, resize {self.settings.attention_resize}, "
                f"mean over {self.settings.kl}, weight {self.attention_weight:g}"
            )
        else:
            lines.append(f"attention: off, {self.why_not}")
        return {"views": "\n  ".join(lines)}

    def _feature(self, name: str, size: Grid | None) -> str:
        net, level = self._net(name), self.levels[name]
        stride = net.feature_strides[level]
        shown = f"{net.feature_channels[level]} channels at stride {stride}"
        return shown if size is None else f"{shown} ({-(-size[0] // stride)}x{-(-size[1] // stride)})"

    def _heads(self, name: str, size: Grid | None) -> str:
        tap = self.attention[name]
        if size is None:
            return f"{tap.heads} heads"
        height, width = (-(-side // tap.multiple) * tap.multiple // tap.stride for side in size)
        return f"{tap.heads} heads on {height}x{width} tokens"

    def _net(self, name: str) -> Segmentor:
        net: Segmentor = getattr(self, name)
        return net

    def _task(self, name: str) -> TaskLoss:
        return self.vit_task if name == "vit" else self.task

    def _counted(self, view: View) -> Tensor:
        """(B, H, W) pixels that count in the cross pseudo supervision."""
        return torch.ones_like(view.valid) if self.settings.cps_padding else view.valid


def _level(net: Segmentor, stride: int) -> int:
    """The finest level of a net at this stride or a larger one; the coarsest if all are finer."""
    return next((level for level, own in enumerate(net.feature_strides) if own >= stride), len(net.feature_strides) - 1)


def _pooled(losses: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The mean over the elements of all parts, from the mean of each."""
    return torch.stack([loss * (size / sum(sizes)) for loss, size in zip(losses, sizes, strict=True)]).sum()


@contextmanager
def _drawing(context: StepContext, *place: str) -> Iterator[None]:
    """Within, the global generators (dropout, stochastic depth) begin from a place and not from what came before."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(context.seed, context.step, context.slice, *place) % (1 << 63))
        yield
