"""A published checkpoint as a net file of tutelage."""

from __future__ import annotations

from pathlib import Path

from tutelage.data.dataset import Classes
from tutelage.errors import RunError
from tutelage.nets.published import cirkd_checkpoint
from tutelage.nets.storage import save_segmentor
from tutelage.pipeline.builder import Builder
from tutelage.proposal.names import given_names
from tutelage.recipe.loading import LoadedRecipe


def import_checkpoint(
    file: Path, net: str, out: Path, classes: str | None, like: LoadedRecipe | None, force: bool
) -> cirkd_checkpoint.Imported:
    """Convert a checkpoint; its classes are ``19``, ``a,b,c`` or a file of names, or those of the recipe ``like``."""
    if out.suffix != ".safetensors":
        text = f"invalid name of a net file: {out.name}; expected NAME.safetensors"
        raise RunError("invalid-value", text, f"--out {out.stem}.safetensors")
    if out.exists() and not force:
        raise RunError("file-exists", f"{out} exists", "give --force to replace it, or another --out")
    if (classes is None) == (like is None):
        text = "the classes of the net need exactly one of --classes and --like"
        raise RunError("missing-option", text, "give either --classes or --like")
    cirkd_checkpoint.settings_of(net)  # before any data is opened
    task = Builder(like).classes if classes is None and like is not None else _named_classes(str(classes))
    imported, report = cirkd_checkpoint.import_checkpoint(file, net, len(task))
    facts = {"imported": {"file": file.name, "net": net}}
    save_segmentor(imported, out, classes=task.names, palette=task.palette, extra=facts)
    return report


def _named_classes(text: str) -> Classes:
    if text.isdecimal():
        return Classes(tuple(f"class {number}" for number in range(int(text))))
    given = given_names(text)
    free = Classes(given.names)
    return Classes(free.names, tuple(map(given.colours.get, free.names, free.palette)))
