"""The `annotate` stage: a trained net's pseudo labels on unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from tutelage.annotate.policies import AnyPolicy, ArgmaxSettings
from tutelage.audit.settings import LabelAudit
from tutelage.evaluation.protocol import Protocol
from tutelage.recipe.base import Fault, NetName, StageSettings, short_form
from tutelage.settings import Ref, Settings, references

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe


class Labelling(Settings):
    """The images and pixels that get pseudo labels."""

    data: Annotated[str, Ref("data", use="unlabeled")]
    """The images (`name/split`); their masks are not opened."""
    policy: AnyPolicy = ArgmaxSettings()
    """The rule that selects pixels: a `kind` with its settings, or the kind alone for the defaults."""
    protocol: Protocol = Protocol()
    """How the net is applied."""

    @model_validator(mode="before")
    @classmethod
    def _short_policy(cls, values: Any) -> Any:
        return short_form(values, "policy", "kind")

    @model_validator(mode="after")
    def _whole_images(self) -> Labelling:
        if not self.policy.of_logits and (self.protocol.kind != "whole" or len(self.protocol.scales) > 1):
            raise ValueError(
                f"policy {self.policy.kind!r} scores features of whole images: expected a protocol of one scale, no "
                "windows"
            )
        return self


class AnnotateStage(Labelling, StageSettings):
    """Write pseudo labels: the predictions of a trained net on unlabelled images."""

    makes: ClassVar[str] = "data"
    pseudo: ClassVar[bool] = True

    kind: Literal["annotate"] = "annotate"
    net: Annotated[NetName, Ref("trained")]
    """The labelling net (`stage` or `stage.net`)."""
    audit: LabelAudit = LabelAudit()
    """An audit of the labels."""

    @model_validator(mode="after")
    def _audits_the_classifier(self) -> AnnotateStage:
        if not self.policy.of_logits and self.audit.val is not None:
            raise ValueError(
                f"audit.val compares the net's classifier with masks, but policy {self.policy.kind!r} does not use it"
            )
        return self

    @property
    def origin(self) -> str | None:
        return self.data

    def faults(self, recipe: Recipe) -> Iterator[Fault]:
        """A fit used by the policy must use features of the labelling net."""
        for reference in references(self):
            fit = recipe.stages.get(reference.value)
            own = getattr(fit, "net", None)
            if reference.ref.kind == "fit" and own is not None and full_name(own) != full_name(self.net):
                text = f"{reference.value!r} was fitted to features of {own!r}; expected the labelling net {self.net!r}"
                yield Fault(reference.place, "fit-of-other-net", text)


def full_name(net: str) -> str:
    """A trained net as ``stage.net``."""
    return net if "." in net else f"{net}.student"
