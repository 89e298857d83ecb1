"""Catalogue of public data sets: classes, palettes, raw ids, image counts and file layouts.

:mod:`~tutelage.data.catalogue.facts` reads the facts in ``catalogue.json``, :mod:`~tutelage.data.catalogue.layouts`
describes the file layouts, :mod:`~tutelage.data.catalogue.source` opens a data set. Nothing is downloaded: several data
sets require a registration, and all have terms that the user must accept.
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
