"""The run folder: artefacts by content address.

    <out>/<stage>-<key>/          one artefact
        artefact.json             written last: the artefact is finished, these are its files and checksums
        stage.yaml                the stage's resolved settings
            log.jsonl                 the training log (with times; not part of the artefact's content)
            audit.jsonl, audit.json   audits of pseudo labels: while training, and of written labels
        checkpoints/              while training
            nets/ scores/ labels/     the stage's results
    fitted.safetensors, fit.json, weights/, images/   results of fit and transform stages; parts/ while they run
            answers/                  in an artefact of its own: a teacher's outputs for every image
    <out>/recipes/<name>-<key>.yaml   resolved recipes; `tutelage clean` keeps the artefacts that they refer to
    <out>/report.html             the newest report

A key is a hash of everything that decides the content: settings, seed, the keys of inputs, the data's fingerprint,
the method's version. Equal keys mean equal content: a finished artefact is reused under any stage name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

from tutelage.errors import RunError
from tutelage.runs.atomic import (
    PARTIAL,
    leftovers,
    remove_abandoned,
    remove_partials,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from tutelage.runs.checkpoints import Checkpoints
from tutelage.runs.lock import HOLDER, locked

KEY_LENGTH = 12
_LOCK = "lock"
FORMAT = 1


def content_key(content: Any) -> str:
    """A short hash of JSON-like content, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Artefact:
    """The folder of one stage's result; only this class knows its file names."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def __repr__(self) -> str:
        return f"Artefact({str(self.folder)!r})"

    @property
    def log(self) -> Path:
        """The training log, one JSON object per line."""
        return self.folder / "log.jsonl"

    @property
    def audit_log(self) -> Path:
        """The audits during training, one JSON object per line."""
        return self.folder / "audit.jsonl"

    @property
    def label_audit(self) -> Path:
        """The audit of the labels that an `annotate` stage wrote."""
        return self.folder / "audit.json"

    def audited_maps(self, step: int, rank: int) -> Path:
        """The nets' outputs at an audit, kept for the next audit, by the process of ``rank``; exists while training."""
        return self.folder / "checkpoints" / f"audit-{step:09d}-{rank}.npz"

    def all_audited_maps(self, step: int) -> list[Path]:
        """The maps of one audit, of all processes."""
        return sorted((self.folder / "checkpoints").glob(f"audit-{step:09d}-*.npz"))

    def audited_steps(self) -> list[int]:
        """The steps of audits that have maps, ascending."""
        return sorted({int(path.stem.split("-")[1]) for path in (self.folder / "checkpoints").glob("audit-*-*.npz")})

    def forget_audited_maps(self, steps: Iterable[int]) -> None:
        """Remove the maps of some audits."""
        for step in steps:
            for path in self.all_audited_maps(step):
                path.unlink(missing_ok=True)

    @property
    def labels(self) -> Path:
        """Folder of an `annotate` stage's maps."""
        return self.folder / "labels"

    @property
    def fitted(self) -> Path:
        """Tensors of a `fit` stage."""
        return self.folder / "fitted.safetensors"

    @property
    def fit_facts(self) -> Path:
        """Facts about a fit: counts per class, excluded data."""
        return self.folder / "fit.json"

    @property
    def parts(self) -> Path:
        """Folder of partial results of an unfinished `fit` stage; removed at the end."""
        return self.folder / "parts"

    @property
    def answers(self) -> Path:
        """Folder of a teacher's outputs for every image."""
        return self.folder / "answers"

    @property
    def report(self) -> Path:
        """The page of a `report` stage."""
        return self.folder / "report.html"

    @property
    def times(self) -> Path:
        """How long the stage took (not part of its content)."""
        return self.folder / "times.json"

    @property
    def cost(self) -> Path:
        """Measured cost of one step of the stage (not part of its content)."""
        return self.folder / "cost.json"

    @property
    def diverged(self) -> bool:
        """Whether its training ended with a loss that was not finite; a restart would end the same way."""
        return self.manifest() is None and any((self.folder / "checkpoints").glob("not-finite-*"))

    def net(self, name: str) -> Path:
        """Weights of one net of the finished stage."""
        return self.folder / "nets" / f"{name}.safetensors"

    def best_net(self, name: str) -> Path:
        """Weights of one net at its best evaluation so far."""
        return self.folder / "checkpoints" / f"best-{name}.safetensors"

    def score(self, name: str) -> Path:
        """Scores of one evaluated net (JSON); per-image counts are in :meth:`counts`."""
        return self.folder / "scores" / f"{name}.json"

    def counts(self, name: str) -> Path:
        """Per-image counts of one evaluated net (npz)."""
        return self.folder / "scores" / f"{name}.npz"

    def checkpoints(self, keep: int, say: Callable[[str], None]) -> Checkpoints:
        """The checkpoints of a training stage."""
        return Checkpoints(self.folder / "checkpoints", keep, say)

    def clear_checkpoints(self) -> None:
        """Remove the checkpoints of a finished stage."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def clear_parts(self) -> None:
        """Remove the parts of a finished fit."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def tidy(self) -> None:
        """Remove leftovers of a kill from a finished artefact, unless the process that finished it is still running."""
        if not leftovers(self.folder) and not any(path.is_dir() for path in (self.folder / "checkpoints", self.parts)):
            return
        try:
            with self.lock(lambda text: None):
                remove_partials(self.folder)
                self.clear_checkpoints()
                self.clear_parts()
        except RunError:
            pass

    def lock(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Hold this artefact's lock; raises :class:`RunError` if another process holds it."""
        return locked(self.folder / _LOCK, say)

    def begin(self, settings: str) -> None:
        """Create the folder and write the stage's settings into it."""
        remove_partials(self.folder)
        write_text(self.folder / "stage.yaml", settings)

    def finish(self, kind: str, files: Iterable[Path] | Mapping[Path, str], facts: dict[str, Any]) -> None:
        """Declare the artefact finished: ``files`` with their checksums, and ``facts`` about it.

        A mapping gives checksums that are already known; other files are read.
        """
        known = files if isinstance(files, Mapping) else {}
        listed = {path.relative_to(self.folder).as_posix(): known.get(path) or sha256(path) for path in sorted(files)}
        content = {"format": FORMAT, "kind": kind, "key": self.key, "files": listed, "facts": facts}
        write_json(self.folder / "artefact.json", content)

    def manifest(self) -> dict[str, Any] | None:
        """The content that :meth:`finish` wrote, or ``None`` for an unfinished artefact."""
        try:
            content = json.loads((self.folder / "artefact.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or not isinstance(content.get("files"), dict)
            or not all(_within(name) for name in content["files"])
        ):
            return None
        return content

    @property
    def declared(self) -> bool:
        """Whether a manifest exists, even if it cannot be read."""
        return (self.folder / "artefact.json").is_file()

    def facts(self) -> dict[str, Any]:
        """The facts given to :meth:`finish`. Raises :class:`RunError` for an unfinished artefact."""
        manifest = self.manifest()
        if manifest is None:
            raise RunError(
                "artefact-unfinished", f"artefact is not finished: {self.folder}", "run the recipe that makes it"
            )
        return dict(manifest["facts"])

    def fault(self) -> str | None:
        """Why a finished artefact cannot be used (a file is missing or changed), or ``None``."""
        manifest = self.manifest()
        if manifest is None:
            return "artefact.json cannot be read" if self.declared else "it is not finished"
        for name, expected in manifest["files"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is gone"
            if sha256(path) != expected:
                return f"{name} was changed after it was made"
        return None

    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def reopen(self) -> None:
        """Declare the artefact unfinished; its changed files are removed, so that they are not reused.

        If the manifest cannot be read, all files are removed: it is unknown which of them are whole.
        """
        manifest = self.manifest()
        if manifest is None and self.declared:
            self._clear()
        for name, expected in ({} if manifest is None else manifest["files"]).items():
            path = self.folder / name
            if path.is_file() and sha256(path) != expected:
                path.unlink()
        (self.folder / "artefact.json").unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove everything except the lock, which is held."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, _LOCK + HOLDER):
                path.unlink()


def _within(name: str) -> bool:
    """Whether a name of a manifest stays inside its folder; a foreign manifest may hold any name."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class Store:
    """The artefacts of one run folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._given: dict[str, Artefact] = {}

    def artefact(self, stage: str, key: str) -> Artefact:
        """The artefact with ``key``: the existing folder under any stage name, or the path of a new one.

        Two stages of one recipe with equal keys share one artefact.
        """
        if key not in self._given:
            found = [Artefact(folder, key) for folder in sorted(self.out.glob(f"*-{key}")) if folder.is_dir()]
            finished = [artefact for artefact in found if artefact.manifest() is not None]
            self._given[key] = next(iter([*finished, *found]), Artefact(self.out / f"{stage}-{key}", key))
        return self._given[key]

    def artefacts(self) -> list[Artefact]:
        """All folders that have the form of an artefact."""
        folders = (path for path in self.out.glob(f"*-{'?' * KEY_LENGTH}") if (path / "stage.yaml").is_file())
        return [Artefact(folder, folder.name[-KEY_LENGTH:]) for folder in sorted(folders)]

    @property
    def recipes_folder(self) -> Path:
        """Folder of resolved recipes; paths in them, as in a stage's settings, are relative to such a folder."""
        return self.out / "recipes"

    @property
    def report(self) -> Path:
        """Path of the newest report, for the user to find."""
        return self.out / "report.html"

    def tidy(self) -> None:
        """Remove partial files of dead processes beside the artefacts and the recipes."""
        for folder in (self.out, self.recipes_folder):
            remove_abandoned(folder)

    def publish_report(self, artefact: Artefact) -> None:
        """Copy a finished report to :attr:`report`."""
        content = artefact.report.read_bytes()
        if not self.report.is_file() or self.report.read_bytes() != content:
            write_bytes(self.report, content)

    def remember(self, name: str, resolved: str, keys: Iterable[str]) -> Path:
        """Keep a fully resolved recipe and the artefacts that it refers to."""
        keys = sorted(keys)
        path = self.recipes_folder / f"{name}-{content_key([resolved, keys])}.yaml"
        write_json(path.with_suffix(".keys.json"), keys)  # first: a recipe exists only once its keys do
        write_text(path, resolved)
        return path

    def referenced(self, recipes: Iterable[Path]) -> set[str]:
        """The keys of all artefacts that the stored recipes refer to."""
        known: set[str] = set()
        for path in recipes:
            known.update(json.loads(path.with_suffix(".keys.json").read_text(encoding="utf-8")))
        return known

    def forget(self, recipe: Path) -> None:
        """Remove a stored recipe, so that its artefacts may be cleaned."""
        recipe.unlink(missing_ok=True)
        recipe.with_suffix(".keys.json").unlink(missing_ok=True)

    def recipes(self) -> list[Path]:
        """The stored recipes, oldest first."""
        written = (path for path in self.recipes_folder.glob("*.yaml") if PARTIAL not in path.name)
        return sorted(written, key=lambda path: path.stat().st_mtime)

    def remove(self, artefact: Artefact) -> int:
        """Remove an artefact; returns the bytes freed. Raises :class:`RunError` if another process holds its lock."""
        size = artefact.size()
        with artefact.lock(lambda text: None):
            shutil.rmtree(artefact.folder)
        return size
