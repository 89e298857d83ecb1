"""The recipes of published experiments: there is one for every row of the published tables, with its settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.nets.test_published import COSTS
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.catalogue import CatalogueSettings, variants
from tutelage.data.catalogue.facts import class_list
from tutelage.data.catalogue.layouts import KINDS
from tutelage.methods.settings.cirkd import CIRKDSettings, CIRKDV2Settings
from tutelage.methods.settings.distill import DistillSettings, Losses
from tutelage.methods.settings.supervised import SupervisedSettings
from tutelage.nets.published.nets import NETS
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.report import ReportStage
from tutelage.recipe.stages.train import TrainStage

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "published"
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in (FOLDER / "cirkd").glob("*.yaml"))

# CIRKD's tables


@dataclass(frozen=True)
class Course:
    """Batch, crop, steps, and (optimizer, rate, weight decay)."""

    batch: int
    crop: tuple[int, int]
    steps: int
    optimizer: tuple[str, float, float]


SGD_01, SGD_02 = ("sgd", 0.01, 1e-4), ("sgd", 0.02, 1e-4)
ADAMW, ADAMW_VIT = ("adamw", 2e-4, 1e-4), ("adamw", 9e-4, 0.01)
STREET, SQUARE = (512, 1024), (512, 512)
CITY_TEACHER = Course(8, STREET, 80_000, SGD_01)
CITY_STUDENT = Course(16, STREET, 40_000, SGD_02)
CITY_SEGFORMER = Course(8, (1024, 1024), 160_000, ADAMW)
SQUARE_40, SQUARE_80 = Course(16, SQUARE, 40_000, SGD_02), Course(16, SQUARE, 80_000, SGD_02)


@dataclass(frozen=True)
class Row:
    """A row of a published table, and the recipe that holds it."""

    file: str
    data: str
    method: str
    teacher: str
    course: Course
    teacher_course: Course
    students: tuple[str, ...] = ()
    group_size: int = 0
    fitnet: tuple[float, ...] = ()
    memory: float = 0.1
    losses: Losses | None = None


def _v1(
    file: str, data: str, course: Course, *students: str, teacher: Course | None = None, memory: float = 0.1
) -> Row:
    return Row(file, data, "cirkd", "deeplabv3_resnet101_v1", course, teacher or course, students, 2, memory=memory)


def _v2(file: str, data: str, course: Course, group: int, fitnet: tuple[float, ...], *students: str) -> Row:
    teacher = CITY_TEACHER if data == "cityscapes" else course
    return Row(file, data, "cirkd_v2", "deeplabv3_resnet101_v2", course, teacher, students, group, fitnet)


def _kd(file: str, losses: Losses) -> Row:
    students = ("deeplabv3_resnet18_v1", "deeplabv3_mobilenetv2")
    courses = (CITY_STUDENT, CITY_TEACHER)
    return Row(file, "cityscapes", "distill", "deeplabv3_resnet101_v1", *courses, students, losses=losses)


def _kd_segformer(file: str, losses: Losses) -> Row:
    courses = (CITY_SEGFORMER, CITY_SEGFORMER)
    return Row(file, "cityscapes", "distill", "segformer_b4", *courses, ("segformer_b0",), losses=losses)


CRITIC = {"weight": 0.001, "critic_weight": 0.1}
SKD = Losses.model_validate({"pixel_kd": 1, "skd_pairwise": 10, "skd_holistic": CRITIC})
IFVD = Losses.model_validate({"pixel_kd": 1, "ifvd": 20, "skd_holistic": CRITIC})
DSD = Losses.model_validate({"dsd_pixel": 1000, "dsd_category": 10})


def _cwd(feature: float, logits: float) -> Losses:
    features = {"weight": feature, "divisor": "published"}
    return Losses.model_validate({"pixel_kd": 1, "cwd_features": features, "cwd": logits, "skd_holistic": CRITIC})


# Table and row, as the publication has them → the recipe, and what must stand in it.
ROWS = {
    "V1 teacher Cityscapes": Row(
        "cirkd/v1_cityscapes_teacher", "cityscapes", "", "deeplabv3_resnet101_v1", CITY_TEACHER, CITY_TEACHER
    ),
    "V1 students Cityscapes": _v1(
        "cirkd/v1_cityscapes",
        "cityscapes",
        CITY_STUDENT,
        "deeplabv3_resnet18_v1",
        "deeplabv3_mobilenetv2",
        "pspnet_resnet18",
        teacher=CITY_TEACHER,
    ),
    "V1 SegFormer Cityscapes": Row(
        "cirkd/v1_cityscapes_segformer",
        "cityscapes",
        "cirkd",
        "segformer_b4",
        CITY_SEGFORMER,
        CITY_SEGFORMER,
        ("segformer_b0",),
        1,
    ),
    "V1 VOC": _v1("cirkd/v1_voc", "voc_aug", SQUARE_40, "deeplabv3_resnet18_v1", "pspnet_resnet18", memory=0.01),
    "V1 CamVid": _v1(
        "cirkd/v1_camvid",
        "camvid",
        Course(16, (360, 360), 40_000, SGD_02),
        "deeplabv3_resnet18_v1",
        "pspnet_resnet18",
    ),
    "V1 ADE20K": _v1("cirkd/v1_ade20k", "ade20k", SQUARE_40, "deeplabv3_resnet18_v1"),
    "V1 COCO-Stuff": _v1("cirkd/v1_coco_stuff", "coco_stuff", SQUARE_80, "deeplabv3_resnet18_v1"),
    "V2 Cityscapes, feature regression 1": _v2(
        "cirkd/v2_cityscapes",
        "cityscapes",
        CITY_TEACHER,
        1,
        (1, 1, 1),
        "deeplabv3_resnet18_v2",
        "upernet_resnet18",
        "deeplabv3_mobilenetv3_small",
    ),
    "V2 Cityscapes, feature regression 10": _v2(
        "cirkd/v2_cityscapes_pspnet", "cityscapes", CITY_TEACHER, 1, (10,), "pspnet_mobilenetv3_small"
    ),
    "V2 Cityscapes, MobileViT": _v2(
        "cirkd/v2_cityscapes_mobilevit",
        "cityscapes",
        Course(8, STREET, 80_000, ADAMW_VIT),
        1,
        (10, 1),
        "deeplabv3_mobilevit_xxs",
        "pspnet_mobilevit_xxs",
    ),
    "V2 Cityscapes, SegFormer": Row(
        "cirkd/v2_cityscapes_segformer",
        "cityscapes",
        "cirkd_v2",
        "segformer_b4",
        CITY_SEGFORMER,
        CITY_SEGFORMER,
        ("segformer_b0",),
        1,
        (1,),
    ),
    "V2 ADE20K, feature regression 1": _v2(
        "cirkd/v2_ade20k", "ade20k", SQUARE_80, 2, (1, 1), "deeplabv3_resnet18_v2", "pspnet_mobilenetv3_large"
    ),
    "V2 ADE20K, feature regression 10": _v2(
        "cirkd/v2_ade20k_fitnet10", "ade20k", SQUARE_80, 2, (10, 10), "upernet_resnet18", "deeplabv3_mobilenetv3_large"
    ),
    "V2 VOC": _v2(
        "cirkd/v2_voc",
        "voc_aug",
        SQUARE_80,
        4,
        (10, 10, 10, 10),
        "deeplabv3_mobilenetv3_small",
        "deeplabv3_mobilenetv3_large",
        "pspnet_mobilenetv3_small",
        "pspnet_mobilenetv3_large",
    ),
    "V2 COCO-Stuff, feature regression 1": _v2(
        "cirkd/v2_coco_stuff", "coco_stuff", SQUARE_80, 2, (1,), "deeplabv3_mobilenetv3_small"
    ),
    "V2 COCO-Stuff, feature regression 10": _v2(
        "cirkd/v2_coco_stuff_fitnet10",
        "coco_stuff",
        SQUARE_80,
        2,
        (10, 10, 10),
        "deeplabv3_resnet18_v2",
        "deeplabv3_mobilenetv3_large",
        "pspnet_mobilenetv3_small",
    ),
    "SKD": _kd("cirkd/kd_skd", SKD),
    "SKD, SegFormer": _kd_segformer("cirkd/kd_skd", SKD),
    "IFVD": _kd("cirkd/kd_ifvd", IFVD),
    "IFVD, SegFormer": _kd_segformer("cirkd/kd_ifvd", IFVD),
    "CWD": _kd("cirkd/kd_cwd", _cwd(50, 3)),
    "CWD, SegFormer": _kd_segformer("cirkd/kd_cwd", _cwd(5, 0.3)),
    "DSD": _kd("cirkd/kd_dsd", DSD),
    "DSD, SegFormer": _kd_segformer("cirkd/kd_dsd", DSD),
    "AT": _kd("cirkd/kd_at", Losses.model_validate({"pixel_kd": 1, "at": 10_000})),
    "FitNet": _kd("cirkd/kd_fitnet", Losses.model_validate({"pixel_kd": 1, "fitnet": 10})),
}


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def published_net(settings: NetSettings) -> str:
    """The published net that a recipe's net is, whatever its first weights."""
    plain = settings.model_copy(update={"weights": None, "width": settings.channels})
    same = (name for name, net in NETS.items() if net.model_copy(update={"width": net.channels}) == plain)
    return next(same, "none")


def net_of(recipe: Recipe, stage: TrainStage) -> str:
    return published_net(recipe.nets[stage.nets["student"]])


def train_stages(recipe: Recipe) -> dict[str, TrainStage]:
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainStage)}


def require_course(stage: TrainStage, course: Course, data: str) -> None:
    (stream,) = stage.streams.values()
    train = {"voc_aug": "train_aug"}.get(data, "train")
    assert isinstance(stream.data, str)
    assert stream.data.partition("/")[2] == train
    assert stream.batch == course.batch
    assert stream.augment == AugmentSettings(crop=course.crop, scale=(0.5, 2.0), scale_steps=16, flip=0.5)
    assert not stream.views
    optimizer, schedule = stage.optimizer, stage.schedule
    assert (stage.steps, stage.accumulate, stage.precision, stage.clip) == (course.steps, 1, "fp32", None)
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == course.optimizer
    assert (optimizer.momentum, optimizer.betas, optimizer.encoder_lr_ratio) == (0.9, (0.9, 0.999), 1.0)
    assert optimizer.decay_norm_and_bias
    assert (schedule.kind, schedule.power, schedule.warmup, schedule.floor) == ("poly", 0.9, 0, 0.0)
    assert stage.evaluate is not None
    assert (stage.evaluate.every, stage.evaluate.images, stage.keep) == (800, None, "best")
    assert stage.evaluate.data.endswith("/val")


def require_method(stage: TrainStage, row: Row, place: int) -> None:
    settings = stage.method_settings()
    assert stage.method.name == row.method
    assert isinstance(settings, CIRKDSettings | DistillSettings)
    assert (settings.task.resize, settings.task.auxiliary, settings.task.loss) == ("corners", 0.4, "cross_entropy")
    assert (settings.student_feature, settings.teacher_feature) == ("embedding", "embedding")
    if isinstance(settings, DistillSettings):
        assert settings.losses == row.losses
        assert not settings.context
        return
    segformer = row.teacher.startswith("segformer")
    assert (settings.pixel_kd.weight, settings.pixel_kd.temperature) == (1.0, 1.0)
    minibatch, memory = settings.minibatch, settings.memory
    assert (minibatch.weight, minibatch.temperature, minibatch.group_size) == (1.0, 0.1, row.group_size)
    assert minibatch.pool == {("cirkd", True): 2, ("cirkd_v2", True): 4}.get((row.method, segformer), 1)
    assert (memory.weight, memory.pixel, memory.region) == (1.0, row.memory, row.memory)
    assert (memory.temperature, memory.softening, memory.pixels, memory.regions) == (0.1, 1.0, 4096, 1024)
    slots = (memory.pixel_slots, memory.region_slots, memory.enqueue)
    assert slots == (2000 if segformer else 20_000, 2000, 16)
    assert (memory.anchors, memory.precision, memory.compat) == (None, "fp32", "published")
    assert isinstance(settings, CIRKDV2Settings) == (row.method == "cirkd_v2")
    if isinstance(settings, CIRKDV2Settings):
        channel = settings.channel
        assert settings.fitnet.weight == row.fitnet[place]
        assert settings.context != segformer
        weights = (channel.weight, channel.minibatch, channel.memory, channel.regression)
        assert weights == (1.0, 1.0, 0.1, 100.0)
        assert (channel.temperature, channel.softening, channel.group_size) == (0.1, 1.0, row.group_size)
        assert (channel.pool, channel.slots, channel.channels, channel.enqueue) == (4, 10_000, 2048, 256)
        assert (channel.precision, channel.compat) == ("fp32", "published")


def test_every_recipe_is_that_of_a_row_and_every_row_has_one() -> None:
    assert sorted({row.file for row in ROWS.values()}) == FILES
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file}.yaml`" in text, file


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_its_published_settings(name: str) -> None:
    row = ROWS[name]
    recipe = recipe_of(row.file)
    stages = train_stages(recipe)
    (data,) = recipe.data.values()
    assert isinstance(data, CatalogueSettings)
    assert data.kind == row.data
    assert (data.variant or variants(data.kind)[0]) == {"coco_stuff": "182"}.get(row.data, variants(row.data)[0])

    (teacher,) = (stage for stage, it in stages.items() if net_of(recipe, it) == row.teacher)
    require_course(stages[teacher], row.teacher_course, row.data)
    assert stages[teacher].seed == 0
    for place, student in enumerate(row.students):
        own = [it for it in stages.values() if net_of(recipe, it) == student]
        alone, taught = own
        for stage in own:
            require_course(stage, row.course, row.data)
            assert stage.seed is None
        assert alone.method.name == "supervised"
        assert taught.inputs == {"teacher": teacher}
        assert taught.nets == alone.nets
        require_method(taught, row, place)


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_in_a_recipe_that_no_row_has(file: str) -> None:
    recipe = recipe_of(file)
    rows = [row for row in ROWS.values() if row.file == file]
    nets = sorted(net_of(recipe, stage) for stage in train_stages(recipe).values())
    assert nets == sorted([*(row.teacher for row in rows), *(net for row in rows for net in row.students * 2)])
    assert {published_net(net) for net in recipe.nets.values()} == set(nets)
    assert all(net.weights is not None for net in recipe.nets.values())


@pytest.mark.parametrize("file", FILES)
def test_supervised_stages_have_the_published_task_loss(file: str) -> None:
    for stage in train_stages(recipe_of(file)).values():
        settings = stage.method_settings()
        if stage.method.name == "supervised":
            assert settings == SupervisedSettings(resize="corners", auxiliary=0.4)


@pytest.mark.parametrize("file", FILES)
def test_everything_is_scored_and_reported_as_published(file: str) -> None:
    recipe = recipe_of(file)
    scored: set[str] = set()
    for stage in recipe.stages.values():
        if isinstance(stage, EvaluateStage):
            own = stage.scored()
            assert stage.data.partition("/")[2] == ("test" if stage.data.startswith("camvid") else "val")
            for label, reference in own.items():
                made = recipe.stages[reference]
                assert isinstance(made, TrainStage)
                assert made.evaluate is not None
                assert made.evaluate.protocol == stage.protocol, label
                segformer = net_of(recipe, made).startswith("segformer")
                assert stage.protocol.resize == "corners"
                assert (stage.protocol.kind == "sliding") == segformer
                assert (stage.protocol.scales, stage.protocol.flip, stage.protocol.size) == ((1.0,), False, None)
                if segformer:  # the halves of an image of 1024 x 2048, nothing twice
                    assert (stage.protocol.window, stage.protocol.steps()) == ((1024, 1024), (1024, 1024))
                    assert stage.protocol.blend == "logits"
            scored |= own.keys()
    assert scored == set(train_stages(recipe))
    reports = [stage for stage in recipe.stages.values() if isinstance(stage, ReportStage)]
    taught = {name for name, stage in train_stages(recipe).items() if stage.inputs}
    assert {report.student for report in reports} == taught
    for report in reports:
        assert report.student is not None
        assert report.baseline is not None
        student, baseline = (train_stages(recipe)[name] for name in (report.student, report.baseline))
        assert student.inputs == {"teacher": report.teacher}
        assert (baseline.nets, baseline.inputs) == (student.nets, {})


def test_names_are_unique_and_shared_folders_hold_one_data_set() -> None:
    recipes = [recipe_of(file) for file in FILES]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert recipe.out is not None
        assert recipe.out.endswith(next(iter(recipe.data)))


def test_stages_that_several_recipes_have_are_written_alike() -> None:
    """So that, with one run folder, they are made once."""
    seen: dict[tuple[str, str, str], tuple[TrainStage, NetSettings]] = {}
    for file in FILES:
        recipe = recipe_of(file)
        for stage in train_stages(recipe).values():
            if stage.method.name == "supervised":
                net = stage.nets["student"]
                place = (recipe.out_folder(), net, published_net(recipe.nets[net]))
                assert seen.setdefault(place, (stage, recipe.nets[net])) == (stage, recipe.nets[net]), (file, net)


@cache
def parameters(name: str, classes: int) -> int:
    """Counted on the meta device, where nothing is stored; Mix Transformers cannot be made there."""
    with torch.device("cpu" if name.startswith("segformer") else "meta"):
        net = Segmentor(NETS[name], classes)
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("file", FILES)
def test_the_nets_can_be_built(file: str) -> None:
    recipe = recipe_of(file)
    (data,) = recipe.data.values()
    assert isinstance(data, CatalogueSettings)
    layout = KINDS[data.kind][data.variant or variants(data.kind)[0]][0]
    for settings in recipe.nets.values():
        assert parameters(published_net(settings), len(class_list(layout.classes).names)) > 1e6


def test_the_nets_have_the_published_sizes() -> None:
    used = {published_net(net) for file in FILES for net in recipe_of(file).nets.values()}
    assert used == set(COSTS)
    for name in used:
        assert parameters(name, 19) / 1e6 == pytest.approx(COSTS[name][0], abs=0.006), name
