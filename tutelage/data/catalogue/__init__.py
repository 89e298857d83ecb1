"""The catalogue of public data sets: their classes, palettes, raw ids and counts, and the layouts they come in.

Facts stand in ``catalogue.json`` (:mod:`~tutelage.data.catalogue.facts`), where the files lie in
:mod:`~tutelage.data.catalogue.layouts`, and :mod:`~tutelage.data.catalogue.source` finds them. Nothing is ever
downloaded: several sets want a registration, and all have terms that their user must accept.
"""

from tutelage.data.catalogue.facts import class_list, class_subsets, expected_counts, label_map
from tutelage.data.catalogue.layouts import KINDS, variants
from tutelage.data.catalogue.source import CatalogueSettings, MissingSplitError, Splits, open_catalogue, report_counts

__all__ = [
    "KINDS",
    "CatalogueSettings",
    "MissingSplitError",
    "Splits",
    "class_list",
    "class_subsets",
    "expected_counts",
    "label_map",
    "open_catalogue",
    "report_counts",
    "variants",
]
