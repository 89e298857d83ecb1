"""Reading a recipe: YAML, overrides from the command line, and all faults at once.

Every fault says where it stands (file and line, or the command line), which key it is about, and what would be right.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tutelage.errors import RecipeError
from tutelage.evaluation.protocol import Protocol
from tutelage.methods import METHODS, find_settings
from tutelage.recipe.choice import counts_as_bare, leak_faults, settled
from tutelage.recipe.document import COMMAND_LINE, Document, Path_, parse, read, value_of
from tutelage.recipe.faults import ValidationFinding, findings, worded
from tutelage.recipe.ladder import chain_stage, course, expand, known_rungs, nested, rung_settings, untuned
from tutelage.recipe.references import Fault, check_references, nearest
from tutelage.recipe.schema import (
    FORMAT,
    RUNG_KEYS,
    AnnotateStage,
    Course,
    EvaluateStage,
    FitStage,
    Labelling,
    LadderSettings,
    Recipe,
    TrainStage,
)
from tutelage.settings import Settings


class LoadedRecipe(typing.NamedTuple):
    """A recipe that was read, with what is needed to say where things stand."""

    recipe: Recipe
    document: Document
    base: Path
    """Folder that data paths are relative to: the recipe's."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe file, with overrides such as ``stages.student.steps=200``.

    Raises :class:`RecipeError` that lists every fault.
    """
    document = read(path)
    return _checked(document, overrides, path.resolve().parent)


def parse_recipe(text: str, base: Path, overrides: Sequence[str] = (), name: str = "recipe") -> LoadedRecipe:
    """Read and check a recipe that is text already."""
    return _checked(parse(text, name), overrides, base)


def _checked(document: Document, overrides: Sequence[str], base: Path) -> LoadedRecipe:
    if not isinstance(document.content, dict):
        raise RecipeError(f"{document.name}: a recipe is a mapping of keys", "start with `tutelage: 1` and `name: ...`")
    for override in overrides:
        _apply(document, override)
    # What has no kind is the usual one.
    for section, kind in (("data", "folder"), ("stages", "train")):
        entries = document.content.get(section)
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                entry.setdefault("kind", kind)
    version = document.content.get("tutelage", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise RecipeError(
            f"{document.where(('tutelage',))}: recipe format {version} is newer than this tutelage knows ({FORMAT})",
            "update tutelage",
        )
    faults: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.content)
        places = check_references(recipe)
    except ValidationError as error:
        found = findings(error, (), Recipe)
        faults += worded(found, document)
        places = _faulty_references(document, found)
    faults += _method_faults(document)
    if recipe is not None and recipe.ladder is not None:
        faults += dict.fromkeys(_course_faults(recipe.ladder, document))
    if recipe is not None and not faults and not places:
        recipe = settled(recipe)
        places = list(dict.fromkeys(_leaks(recipe)))
    faults += [f"{document.where(place)}: {text}" for place, text in places]
    if faults or recipe is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"{document.name} has {count}:\n  " + "\n  ".join(faults), "mend these; `tutelage schema` has all keys"
        )
    return LoadedRecipe(recipe, document, base)


def method_settings(stage: TrainStage) -> Settings:
    """The checked settings of a stage's method, defaults filled in."""
    return find_settings(stage.method.name).model_validate(stage.method.settings())


def resolved(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that reads back to the same recipe."""
    content = recipe.model_dump(mode="json")
    for name, stage in recipe.stages.items():
        written = content["stages"][name]
        if isinstance(stage, TrainStage):
            written["method"] = {"name": stage.method.name, **method_settings(stage).model_dump(mode="json")}
            _resolve_course(stage, written)
        elif isinstance(stage, (AnnotateStage, EvaluateStage, FitStage)):
            written["protocol"] = _protocol(stage.protocol)
    if recipe.ladder is None:
        del content["ladder"]
    else:
        _resolve_ladder(recipe.ladder, content["ladder"])
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def _resolve_ladder(ladder: LadderSettings, written: dict[str, Any]) -> None:
    _resolve_course(ladder.training, written["training"])
    written["score"]["protocol"] = _protocol(ladder.score.protocol)
    for name, rung in ladder.rungs.items():
        if rung.stages:
            written["rungs"][name] = {"name": rung.name, **rung.own()}
            continue
        settings = rung_settings(rung.name).model_validate(rung.settings())
        content = settings.model_dump(mode="json")
        if isinstance(settings, Labelling):
            content["protocol"] = _protocol(settings.protocol)
        written["rungs"][name] = {"name": rung.name, **content, **rung.own()}


def _resolve_course(course: Course, written: dict[str, Any]) -> None:
    if course.evaluate is not None:
        written["evaluate"]["protocol"] = _protocol(course.evaluate.protocol)


def _protocol(protocol: Protocol) -> dict[str, Any]:
    """What matters of a protocol: one that says more (windows of a whole image) is refused when it is read."""
    return protocol.model_dump(mode="json", include=protocol.canonical().keys() | protocol.model_fields_set)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors; each method's settings included."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    choices = []
    for name in METHODS:
        own = find_settings(name).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {"name": {"const": name, "type": "string"}, **own.get("properties", {})}
        own["required"] = ["name", *own.get("required", [])]
        definitions[own["title"]] = own
        choices.append({"$ref": f"#/$defs/{own['title']}"})
    definitions["MethodChoice"] = {"anyOf": [*choices, {"enum": sorted(METHODS)}]}
    what = definitions["FitStage"]["properties"]["what"]
    kinds = sorted(what["discriminator"]["mapping"])
    definitions["FitStage"]["properties"]["what"] = {
        "description": what.pop("description", ""),
        "anyOf": [what, {"enum": kinds}],
    }
    definitions["Rung"] = {"anyOf": [definitions["Rung"], {"enum": sorted(METHODS)}]}
    return schema


def _apply(document: Document, override: str) -> None:
    """Put one ``a.b=c`` into the document. Raises :class:`RecipeError` when it cannot be meant."""
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"command line: {override!r} is no override", "write key.key=value, e.g. seed=1")
    place = document.content
    for depth, part in enumerate(parts[:-1], 1):
        inner = place.get(part)
        if depth == 3 and isinstance(inner, str) and (part == "method" or parts[:2] == ["ladder", "rungs"]):
            inner = {"name": inner}
        elif depth == 3 and isinstance(inner, str) and part == "what":
            inner = {"kind": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise RecipeError(
                f"command line: {'.'.join(parts[:depth])} has no keys, so no {parts[depth]!r}", "give it as a whole"
            )
        place[part] = inner
        place = inner
        document.lines.setdefault(tuple(parts[:depth]), COMMAND_LINE)
    place[parts[-1]] = value_of(value, "command line")
    below = [path for path in document.lines if path[: len(parts)] == tuple(parts)]
    for path in below:
        del document.lines[path]
    document.lines[tuple(parts)] = COMMAND_LINE


def _faulty_references(document: Document, found: Sequence[ValidationFinding]) -> list[Fault]:
    """Faults of references in what is sound of a recipe that has faults of its own, so that all are said at once."""
    stand_ins: dict[str, Any] = {"tutelage": FORMAT, "name": "recipe", "data": {}, "stages": {}}
    content = copy.deepcopy(document.content)
    removed: set[Path_] = set()
    while not removed & {("data",), ("nets",), ("stages",)}:
        before = len(removed)
        for one in found:
            removed |= _remove(content, one.path[:-1] if one.kind == "missing" else one.path)
        try:
            recipe = Recipe.model_validate({**stand_ins, **content})
        except ValidationError as error:
            if len(removed) == before:
                break
            found = findings(error, (), Recipe)
            continue
        left_out = sorted((str(path[0]), str(path[1])) for path in removed if len(path) == 2)
        return [
            (place, text)
            for place, text in check_references(recipe, left_out)
            if not any(place[: len(path)] == path or path[: len(place)] == place for path in removed)
        ]
    return []


def _remove(content: dict[str, Any], path: Path_) -> set[Path_]:
    """Take out what stands at ``path``, or the list that it stands in; returns the place, if anything was there."""
    place: Any = content
    for depth, part in enumerate(path, 1):
        if not isinstance(place, dict) or part not in place:
            break
        if depth == len(path) or not isinstance(place[part], dict):
            del place[part]
            return {path[:depth]}
        place = place[part]
    return set()


def _method_faults(document: Document) -> Iterable[str]:
    """Faults in the settings of the methods that the stages name."""
    stages, ladder = document.content.get("stages"), document.content.get("ladder")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("kind", "train") == "train" and "method" in stage:
            yield from _choice_faults(document, ("stages", name, "method"), stage["method"], METHODS, ())
    rungs = ladder.get("rungs") if isinstance(ladder, dict) else None
    for name, rung in rungs.items() if isinstance(rungs, dict) else ():
        local = rung.get("stages") if isinstance(rung, dict) else None
        if isinstance(local, dict) and local:
            for key, stage in local.items():
                if isinstance(stage, dict) and "method" in stage:
                    place = ("ladder", "rungs", name, "stages", key, "method")
                    yield from _choice_faults(document, place, stage["method"], METHODS, ())
            continue
        yield from _choice_faults(document, ("ladder", "rungs", name), rung, known_rungs(), RUNG_KEYS)


def _choice_faults(
    document: Document, place: Path_, choice: Any, known: Collection[str], other: Collection[str]
) -> Iterable[str]:
    """Faults of one choice of a method; keys in ``other`` are not the method's."""
    chosen = choice.get("name") if isinstance(choice, dict) else choice
    if not isinstance(chosen, str):
        return  # the frame's check has said so
    if chosen not in known:
        yield f"{document.where((*place, 'name'))}: unknown method {chosen!r}{nearest(chosen, known)}"
        return
    settings = rung_settings(chosen)
    try:
        given = choice if isinstance(choice, dict) else {}
        settings.model_validate({key: value for key, value in given.items() if key != "name" and key not in other})
    except ValidationError as error:
        yield from worded(findings(error, place, settings), document)


def _course_faults(ladder: LadderSettings, document: Document) -> Iterable[str]:
    """Faults of what the rungs, or the trials, change of the training."""
    changes: list[tuple[Path_, dict[str, Any]]] = [
        (("ladder", "rungs", name, "training"), rung.training) for name, rung in ladder.rungs.items()
    ]
    for key, tried in ladder.tune.values.items() if ladder.tune is not None else ():
        changes += [(("ladder", "tune", "values"), nested(key, value)) for value in tried]
    for place, change in changes:
        try:
            course(ladder, change, {})
        except ValidationError as error:
            yield from worded(findings(error, place, Course), document)
    for name, rung in ladder.rungs.items():
        for local in rung.stages:
            try:
                chain_stage(ladder, name, local, name, 0, {})
            except ValidationError as error:
                place = ("ladder", "rungs", name, "stages", local)
                yield from worded(findings(error, place, TrainStage), document)


def _leaks(recipe: Recipe) -> Iterable[Fault]:
    """Choices by masks that count as missing, of the stages and of all rungs; a rung's where it can be written."""
    yield from leak_faults(recipe)
    ladder = recipe.ladder
    if ladder is None:
        return
    expanded = expand(recipe, untuned(ladder))
    owners = {name: attempt.rung for attempt in expanded.attempts.values() for name in attempt.trained}
    for place, text in leak_faults(expanded.recipe):
        rung = owners.get(str(place[1]))
        if rung is None:
            continue
        own = place[2] in ladder.rungs[rung].training or bool(ladder.rungs[rung].stages)
        yield ("ladder", "rungs", rung, "training", *place[2:]) if own else ("ladder", "training", *place[2:]), text
    if ladder.tune is None or ladder.tune.on_target:
        return
    for name, stage in expanded.recipe.stages.items():
        if (
            name in owners
            and isinstance(stage, TrainStage)
            and counts_as_bare(expanded.recipe, stage, ladder.tune.data)
        ):
            text = (
                f"the trials would choose by masks of {ladder.tune.data}, which counts as unlabelled; name other "
                "data, or write on_target: true, and every result is marked"
            )
            yield ("ladder", "tune", "data"), text


def protocol_from(pairs: Sequence[str]) -> Protocol:
    """A protocol from ``a=b`` pairs of the command line. Raises :class:`RecipeError` that lists every fault."""
    document = Document("command line", {})
    for pair in pairs:
        _apply(document, pair)
    try:
        return Protocol.model_validate(document.content)
    except ValidationError as error:
        faults = "\n  ".join(worded(findings(error, (), Protocol), document))
        raise RecipeError(f"the protocol cannot be meant:\n  {faults}", "e.g. kind=sliding window=[512,512]") from None
