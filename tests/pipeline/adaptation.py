"""A project with the stages of domain adaptation: copies in another style, fits of all kinds, and what uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tests.projects import DATA, write_project
from tutelage.engine.contract import TaskInfo
from tutelage.methods import METHODS
from tutelage.methods.settings.supervised import SupervisedSettings
from tutelage.methods.supervised import Supervised
from tutelage.nets.segmentor import Segmentor

ADAPTATION = (
    """\
tutelage: 1
name: adaptation
out: runs
run: {device: cpu, threads: 1}
"""
    + DATA
    + """\
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
  plain: {encoder: test_efficientnet, decoder: lraspp, width: 16, normalisation: none}
stages:
  looks: {kind: transform, data: city/train, target: city/val, style: {kind: fda, beta: 0.1}}
  teacher:
    method: supervised
    nets: {student: small}
    streams:
      labeled: {data: looks, batch: 2, augment: {crop: [32, 32]}}
    steps: 1
  means: {kind: fit, what: {kind: means, min_pixels: 1}, net: teacher, data: city/val}
  anchors: {kind: fit, what: {kind: anchors, min_pixels: 1, epochs: 1}, net: teacher, data: looks}
  mixtures: {kind: fit, what: {kind: mixtures, components: 2, samples: 100}, net: teacher, data: city/train}
  unsure: {kind: fit, what: entropies, net: teacher, data: city/val}
  maps:
    kind: fit
    what: {kind: transferability, size: [64, 64], pool: [1, 1], centres: 3}
    encoder: plain
    data: looks
    target: city/val
    entropies: unsure
  student:
    method: prototyped
    nets: {student: small}
    inputs: {prototypes: means}
    streams:
      labeled: {data: looks, weights: maps, batch: 2, augment: {crop: [32, 32]}}
    steps: 1
  score: {kind: evaluate, nets: [student], data: city/val}
"""
)
"""A second or two; the net predicts some classes only."""

STAGES = ("looks", "teacher", "means", "anchors", "mixtures", "unsure", "maps", "student", "score")
FITS = ("means", "anchors", "mixtures", "unsure", "maps")


class PrototypedSettings(SupervisedSettings):
    """As supervised, with prototypes."""

    implementation = "tests.pipeline.adaptation:Prototyped"
    fitted_inputs = {"prototypes": ("means", "anchors")}


class Prototyped(Supervised):
    """As supervised, but starts from prototypes; they show in a buffer."""

    Settings = PrototypedSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: SupervisedSettings, facts: TaskInfo) -> None:
        super().__init__(nets, settings, facts)
        self.names = facts.names
        self.register_buffer("prototypes", facts.fitted_inputs["prototypes"]["prototypes"].clone())

    prototypes: Tensor


REGISTERED = (METHODS, "prototyped", "tests.pipeline.adaptation:PrototypedSettings")
"""For ``monkeypatch.setitem``: a recipe may then name the method ``prototyped``."""


def write_adaptation(root: Path, *changes: tuple[str, str]) -> Path:
    """Write data and recipe into ``root``, with (old, new) replaced in the recipe; its run folder."""
    text = ADAPTATION
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    write_project(root, text)
    return root / "runs"
