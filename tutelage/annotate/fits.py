"""What a `fit` stage fits: one settings class a kind, which also runs the fit and gives a stand-in for it.

This module does not import torch, so that recipes are validated without it; each ``run`` imports the code beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.settings import MEANS_KIND, MIXTURES_KIND, MixtureSettings
from tutelage.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tutelage.data.dataset import Dataset
    from tutelage.nets.segmentor import Segmentor

OnUnreadable = Literal["error", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FitRun:
    """The inputs of a fit, and the files that it writes."""

    net: Segmentor
    dataset: Dataset
    target: Dataset | None
    """Images of the other domain, for `transferability`."""
    entropies: Mapping[str, Tensor] | None
    """Tensors of a fit of `entropies`, for `transferability`."""
    path: Path
    """The tensors."""
    parts: Path
    """Folder of unfinished work."""
    weights: Path
    """Folder of weight maps, for `transferability`."""
    device: torch.device
    protocol: Protocol
    seed: int
    on_unreadable: OnUnreadable = "error"
    progress: Progress = lambda done, total: None

    @property
    def common(self) -> dict[str, Any]:
        """What every fit takes."""
        return {"device": self.device, "on_unreadable": self.on_unreadable, "progress": self.progress}


Fitted = tuple[list[Path], dict[str, Any]]
"""All files that a fit wrote, and its facts."""


class FitKind(Settings):
    """The base of all kinds of fits."""

    file_kind: ClassVar[str]
    """What the file of tensors is called inside."""
    of_target: ClassVar[bool] = False
    """Whether images of another domain are read too, and an untrained encoder may be used."""
    per_class: ClassVar[bool] = True
    """Whether the result holds something of each class that methods may start from."""
    any_protocol: ClassVar[bool] = False
    """Whether windows and several scales are allowed."""

    def opens_masks(self) -> bool:
        """Whether the masks of the data are opened."""
        return False

    def images(self, dataset: Dataset, target: Dataset | None) -> int:
        """How many images are read, for the progress bar."""
        return len(dataset)

    def run(self, run: FitRun) -> Fitted:
        """Fit, resuming unfinished work; returns the files and facts. Raises as the function of each kind does."""
        raise NotImplementedError

    def stand_in(self, classes: int, channels: int) -> dict[str, Tensor]:
        """Random tensors of the shapes that the fit would have, for a trial run before it exists."""
        import torch

        random = torch.Generator().manual_seed(0)
        return {"prototypes": torch.randn(classes, channels, generator=random), "counts": torch.ones(classes)}


class RunningMeanFit(FitKind):
    """The base of fits of class means."""

    file_kind: ClassVar[str] = MEANS_KIND

    min_pixels: Annotated[int, Field(ge=1)] = 10
    """A class with fewer positions in an image gives no vector for that image."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """How often all images are folded in."""
    count_cap: Annotated[int, Field(ge=1)] = 3000
    """Vectors after which the mean forgets old ones."""

    def least_confidence(self) -> float | None:
        """The largest probability that a position must reach to count; ``None``: any."""
        return None

    def run(self, run: FitRun) -> Fitted:
        from tutelage.annotate.class_means import fit_means

        facts = fit_means(run.net, run.dataset, self, run.path, run.parts, protocol=run.protocol, **run.common)
        return [run.path], facts


class MeansFit(RunningMeanFit):
    """The mean feature of each class where it is predicted: ProDA's initial prototypes."""

    kind: Literal["means"] = "means"
    labels: bool = False
    """Open masks, and use only positions that are predicted correctly."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only positions whose largest probability reaches it; null: all."""

    def opens_masks(self) -> bool:
        return self.labels

    def least_confidence(self) -> float | None:
        return self.threshold


class AnchorsFit(RunningMeanFit):
    """The mean feature of each class where it is labelled and predicted: CAG-UDA's anchors, of the source."""

    kind: Literal["anchors"] = "anchors"

    def opens_masks(self) -> bool:
        return True


class MixturesFit(MixtureSettings, FitKind):
    """A Gaussian mixture per class, of features that are labelled and predicted as it: BiSMAP's prototypes."""

    file_kind: ClassVar[str] = MIXTURES_KIND

    kind: Literal["mixtures"] = "mixtures"
    samples: Annotated[int, Field(ge=1)] = 300_000
    """Rows that are kept per class."""
    rates: Literal["gta5", "synthia"] | list[Annotated[float, Field(gt=0, le=1)]] | None = None
    """Share of an image's positions, per class, that is offered to the sample: the published ones, or a list in the
    order of the task's classes; null: all. The sample is random either way; rates thin large images of one scene."""

    def opens_masks(self) -> bool:
        return True

    def run(self, run: FitRun) -> Fitted:
        from tutelage.annotate.mixtures import fit_class_mixtures

        facts = fit_class_mixtures(
            run.net, run.dataset, self, run.path, run.parts, protocol=run.protocol, seed=run.seed, **run.common
        )
        return [run.path], facts

    def stand_in(self, classes: int, channels: int) -> dict[str, Tensor]:
        import torch

        random, shape = torch.Generator().manual_seed(0), (classes, self.components, channels)
        return {
            "present": torch.ones(classes, dtype=torch.bool),
            "weight": torch.full(shape[:2], 1 / self.components, dtype=torch.float64),
            "mean": torch.randn(shape, generator=random, dtype=torch.float64),
            "variance": torch.ones(shape, dtype=torch.float64),
        }


class TransferabilityFit(FitKind):
    """A weight per pixel of labelled source images, by its distance to the target's features: BiSMAP's maps."""

    file_kind: ClassVar[str] = "transferability"
    of_target: ClassVar[bool] = True
    per_class: ClassVar[bool] = False

    kind: Literal["transferability"] = "transferability"
    size: tuple[PositiveInt, PositiveInt] = (128, 256)
    """Height and width to which images are resized before the net."""
    pool: tuple[PositiveInt, PositiveInt] = (1, 2)
    """Cells of the encoder's last level, down and across, that are averaged into one feature."""
    centres: PositiveInt = 40
    """Centres of the target's features."""
    rows: PositiveInt = 1_000_000
    """Features of the target that k-means reads at most: a random sample."""
    scale: Literal["ema", "global"] = "ema"
    """The distance with the weight 1/2: a moving average over images in their order, as published, or one mean."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the moving average."""
    bonus: Literal["none", "gta5", "synthia"] | list[Annotated[float, Field(ge=0)]] = "none"
    """Entropies of classes, scaled to 0..1 and added to the weight: those in the published code, or a list, one per
    class of the task. With `entropies` of the stage they are computed."""

    def opens_masks(self) -> bool:
        return True

    def images(self, dataset: Dataset, target: Dataset | None) -> int:
        return 2 * len(dataset) + (0 if target is None else len(target))

    def run(self, run: FitRun) -> Fitted:
        from tutelage.annotate.transferability import fit_transferability
        from tutelage.data.weights import WeightFolder

        assert run.target is not None
        computed = run.entropies
        return fit_transferability(
            run.net,
            run.dataset,
            run.target,
            self,
            run.path,
            WeightFolder(run.weights),
            run.parts,
            seed=run.seed,
            entropy=None if computed is None else (computed["entropy"], computed["pixels"]),
            **run.common,
        )


class EntropiesFit(FitKind):
    """The mean entropy in nats of the pixels that are predicted as each class, from which a class bonus is computed."""

    file_kind: ClassVar[str] = "class entropies"
    any_protocol: ClassVar[bool] = True

    kind: Literal["entropies"] = "entropies"

    def run(self, run: FitRun) -> Fitted:
        from tutelage.annotate.entropies import fit_entropies

        facts = fit_entropies(run.net, run.dataset, run.path, run.parts, protocol=run.protocol, **run.common)
        return [run.path], facts

    def stand_in(self, classes: int, channels: int) -> dict[str, Tensor]:
        import torch

        random = torch.Generator().manual_seed(0)
        return {
            "entropy": torch.rand(classes, generator=random, dtype=torch.float64),
            "pixels": torch.ones(classes, dtype=torch.int64),
        }


AnyFit = Annotated[MeansFit | AnchorsFit | MixturesFit | TransferabilityFit | EntropiesFit, Field(discriminator="kind")]
"""The fits by `kind`."""
