"""Methods by name: settings stand in ``methods/settings/``, which imports no torch, the methods beside it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from tutelage.errors import RecipeError

if TYPE_CHECKING:
    from tutelage.engine.contract import Method
    from tutelage.engine.settings import MethodSettings

METHODS: dict[str, str] = {
    "supervised": "tutelage.methods.settings.supervised:SupervisedSettings",
    "pixel_kd": "tutelage.methods.settings.pixel_kd:PixelKDSettings",
    "distill": "tutelage.methods.settings.distill:DistillSettings",
    "cirkd": "tutelage.methods.settings.cirkd:CIRKDSettings",
    "cirkd_v2": "tutelage.methods.settings.cirkd:CIRKDV2Settings",
    "mean_teacher": "tutelage.methods.settings.mean_teacher:MeanTeacherSettings",
    "fixmatch": "tutelage.methods.settings.fixmatch:FixMatchSettings",
    "unimatch": "tutelage.methods.settings.unimatch:UniMatchSettings",
    "unimatch_v2": "tutelage.methods.settings.unimatch_v2:UniMatchV2Settings",
    "trikd": "tutelage.methods.settings.trikd:TriKDSettings",
    "advent": "tutelage.methods.settings.advent:AdvEntSettings",
    "proda": "tutelage.methods.settings.proda:ProDASettings",
    "self_distill": "tutelage.methods.settings.self_distill:SelfDistillSettings",
    "cag": "tutelage.methods.settings.cag:CAGSettings",
    "adaptsegnet": "tutelage.methods.settings.advent:AdaptSegNetSettings",
    "minent": "tutelage.methods.settings.advent:MinEntSettings",
    "fda": "tutelage.methods.settings.fda:FDASettings",
    "fda_self_training": "tutelage.methods.settings.fda:FDASelfTrainingSettings",
    "cbst": "tutelage.methods.settings.cbst:CBSTSettings",
    "dacs": "tutelage.methods.settings.dacs:DACSSettings",
    "daformer": "tutelage.methods.settings.daformer:DAFormerSettings",
    "hrda": "tutelage.methods.settings.hrda:HRDASettings",
    "mic": "tutelage.methods.settings.mic:MICSettings",
    "bismap": "tutelage.methods.settings.bismap:BiSMAPSettings",
    "bismap_warm_up": "tutelage.methods.settings.bismap:BiSMAPWarmUpSettings",
    "pbal_bpl": "tutelage.methods.settings.pbal:PBALBidirectionalSettings",
    "pbal_pst": "tutelage.methods.settings.pbal:PBALSelfTrainingSettings",
    "cps": "tutelage.methods.settings.cps:CPSSettings",
    "u2pl": "tutelage.methods.settings.u2pl:U2PLSettings",
}
"""Method name → ``module:class`` of its settings, which name the method's class in turn."""

METHODS = {**{one.name: one.value for one in entry_points(group="tutelage.methods")}, **METHODS}


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules, installed or in the working folder, and add the methods of their ``METHODS`` for this process.

    Raises :class:`RecipeError` if a module cannot be imported, defines no ``METHODS``, or names a method that exists.
    """
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            given = getattr(importlib.import_module(module), "METHODS", None)
        except ImportError as error:
            text = f"cannot import plugin {module!r} ({error})"
            raise RecipeError("plugin-missing", text, "install it, or work in the folder that holds its file") from None
        except Exception as error:  # any fault of the module itself
            text = f"plugin {module!r} fails when it is imported ({type(error).__name__}: {error})"
            raise RecipeError("plugin-invalid", text, "fix the module; name it as in `import`, without .py") from error
        if not isinstance(given, dict) or not all(isinstance(one, str) for one in (*given, *given.values())):
            text = f"plugin {module!r} does not define METHODS as a dictionary of texts"
            raise RecipeError("plugin-invalid", text, 'add METHODS = {"name": "module:SettingsClass"} to it')
        taken = [name for name, place in given.items() if METHODS.get(name, place) != place]
        if taken:
            text = f"plugin {module!r} names a method that exists: {', '.join(taken)}"
            raise RecipeError("plugin-invalid", text, "give it another name")
        METHODS.update(given)


def find_settings(name: str) -> type[MethodSettings]:
    """The settings class of a method, without importing torch. Raises ``KeyError`` for an unknown name."""
    found: type[MethodSettings] = _load(METHODS[name])
    return found


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises ``KeyError`` for an unknown name."""
    found: type[Method] = _load(find_settings(name).implementation)
    return found


def _load(place: str) -> type:
    module, _, attribute = place.partition(":")
    try:
        found: type = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        if place.startswith("tutelage."):
            raise
        raise RecipeError("plugin-invalid", f"cannot load {place!r} ({error})", "expected module:class") from None
    return found
