"""The `fit` stage: class means, mixtures or pixel weights, fitted to features without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from tutelage.annotate.fits import AnyFit
from tutelage.evaluation.protocol import Protocol
from tutelage.recipe.base import Fault, Name, NetName, StageSettings, short_form
from tutelage.settings import Ref, Reference

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe


class FitStage(StageSettings):
    """Fit class means, mixtures or pixel weights to a net's features, without gradients."""

    makes: ClassVar[str] = "fit"

    kind: Literal["fit"] = "fit"
    what: AnyFit
    """The quantity to fit: a `kind` with its settings, or the kind alone for the defaults."""
    net: Annotated[NetName, Ref("trained")] | None = None
    """The trained net whose features are used (`stage` or `stage.net`)."""
    encoder: Annotated[Name, Ref("net")] | None = None
    """For `transferability`, in place of `net`: a net of the recipe with its initial weights, such as self-supervised
    ones."""
    data: Annotated[str, Ref("data")]
    """The images (`name/split`, or a `transform` stage); masks are opened for `anchors`, `mixtures` and
    `transferability`, and for `means` with `labels`."""
    target: Annotated[str, Ref("data", use="target")] | None = None
    """For `transferability`: the images of the other domain; their masks are not opened."""
    entropies: Annotated[Name, Ref("fit", fits=("entropies",))] | None = None
    """For `transferability`: the fit of `entropies` from which the bonus of classes is computed."""
    protocol: Protocol = Protocol()
    """How the net is applied. Whole images at one scale; `entropies` has no such limits."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's."""

    @model_validator(mode="before")
    @classmethod
    def _short_what(cls, values: Any) -> Any:
        return short_form(values, "what", "kind")

    @model_validator(mode="after")
    def _fits_what(self) -> FitStage:
        what, kind = self.what, self.what.kind
        for name in ("encoder", "target", "entropies"):
            if getattr(self, name) is not None and not what.of_target:
                raise ValueError(f"{name} has no effect with {kind}; use it with transferability")
        if what.of_target and self.target is None:
            raise ValueError(f"{kind} needs images of the other domain: target: <data>")
        if (self.net is None) == (self.encoder is None):
            raise ValueError(f"{kind} needs a net: net: <stage>" + (", or encoder: <net>" if what.of_target else ""))
        if self.entropies is not None and getattr(what, "bonus", "none") != "none":
            raise ValueError("expected one of `bonus` and `entropies`")
        if what.of_target and self.protocol != Protocol(precision=self.protocol.precision):
            raise ValueError(f"{kind} uses only the precision of a protocol; it has its own size")
        if not what.any_protocol and (self.protocol.kind != "whole" or len(self.protocol.scales) > 1):
            raise ValueError(f"{kind} uses features of whole images at one scale; remove windows and scales")
        return self

    @property
    def origin(self) -> str | None:
        return self.data

    @property
    def weighted_images(self) -> str | None:
        return None if self.what.per_class or not self.what.of_target else self.data

    def refined(self, reference: Reference) -> Reference:
        """The data by whether masks are opened."""
        if reference.place != ("data",):
            return reference
        masks = self.what.opens_masks()
        use = "source" if self.target is not None else "train" if masks else "unlabeled"
        return reference.of(Ref("data", masks=masks, use=use))

    def leaks(self, recipe: Recipe, is_bare: Callable[[str], bool]) -> Iterator[Fault]:
        source = recipe.stages.get(self.data)
        by_people = source is None or not source.pseudo
        if self.what.opens_masks() and by_people and is_bare(self.data):
            text = f"this fit uses masks of {self.data}, which counts as unlabelled elsewhere"
            yield Fault(("data",), "target-labels", text)
