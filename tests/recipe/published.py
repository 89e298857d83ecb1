"""Published experiments: for each recipe and each of its stages the numbers of the paper, or of its code.

A fact is a dotted key of the stage and its value; ``method.`` holds the settings of the method, ``net.`` those of the
student's net, ``streams.`` those of all streams. Besides: ``rate`` and ``head_rate`` (learning rates of the encoder and
of the heads), ``net`` (the published net that it is), ``images`` (steps times images of all streams in a step) and
``policy.`` (how pseudo labels are chosen). What follows from other facts is computed here, not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import pytest

from tutelage.data.catalogue.facts import class_list
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.methods.settings.bismap import MASKED_VIEW
from tutelage.methods.settings.distill import Losses

Facts = dict[str, Any]
Stages = Mapping[str, Facts]

CITY_TRAIN = 2975
NINETEEN = class_list("cityscapes").names
SIXTEEN = [name for name in NINETEEN if name not in ("terrain", "truck", "train")]
THIRTEEN = [name for name in SIXTEEN if name not in ("wall", "fence", "pole")]
"""The classes that SYNTHIA has, and those of them that all papers score."""
SUBSETS: dict[str, dict[str, Any]] = {"gta5": {}, "synthia": {"thirteen": THIRTEEN, "sixteen": SIXTEEN}}
STREET = (512, 1024)


def optimizer(kind: str, head_rate: float, decay: float, rate: float | None = None) -> Facts:
    """An optimizer with the rates of heads and encoder; SGD's momentum is 0.9 and Adam's betas are the usual ones."""
    return {
        "optimizer.kind": kind,
        "optimizer.momentum": 0.9,
        "optimizer.betas": (0.9, 0.999),
        "optimizer.weight_decay": decay,
        "optimizer.decay_norm_and_bias": True,
        "head_rate": head_rate,
        "rate": head_rate if rate is None else rate,
    }


def poly(power: float = 0.9, horizon: int | None = None, **changes: Any) -> Facts:
    """Polynomial decay, over ``horizon`` steps where the run ends before."""
    found = {"kind": "poly", "power": power, "warmup": 0, "floor": 0.0, "lag": 0, "horizon": horizon, **changes}
    return {f"schedule.{name}": value for name, value in found.items()}


def settings(**values: Any) -> Facts:
    """Settings of the method; two underscores for a dot."""
    return {f"method.{name.replace('__', '.')}": value for name, value in values.items()}


def augment(stream: str = "*", **settings: Any) -> Facts:
    """Augmentation of a stream; what is not given is off."""
    plain: Facts = {"resize": None, "crop": None, "scale": (1.0, 1.0), "scale_steps": None, "flip": 0.0}
    return {f"streams.{stream}.augment.{name}": value for name, value in {**plain, **settings}.items()}


def colour(stream: str, view: str, **settings: Any) -> Facts:
    """Colours of a view of a stream."""
    return {f"streams.{stream}.views.{view}.colour.{name}": value for name, value in settings.items()}


ALWAYS: Facts = {"accumulate": 1, "clip": None, "precision": "fp32"}
"""Of every training, where its facts do not differ."""

# CIRKD: Yang et al., CVPR 2022 (V1) and its journal version (V2), with the baselines of their tables.

SGD_01, SGD_02 = optimizer("sgd", 0.01, 1e-4), optimizer("sgd", 0.02, 1e-4)
ADAMW, ADAMW_VIT = optimizer("adamw", 2e-4, 1e-4), optimizer("adamw", 9e-4, 0.01)


def course(batch: int, crop: tuple[int, int], steps: int, rates: Facts) -> Facts:
    """A training of CIRKD's code, which scores every 800 steps and keeps the best."""
    return {
        **rates,
        **poly(),
        **augment(crop=crop, scale=(0.5, 2.0), scale_steps=16, flip=0.5),
        "steps": steps,
        "streams.*.batch": batch,
        "streams.*.views": {},
        "evaluate.every": 800,
        "evaluate.images": None,
        "keep": "best",
    }


CITY_TEACHER, CITY_STUDENT = course(8, STREET, 80_000, SGD_01), course(16, STREET, 40_000, SGD_02)
CITY_VIT = course(8, STREET, 80_000, ADAMW_VIT)
SEGFORMER = course(8, (1024, 1024), 160_000, ADAMW)
SQUARE_40, SQUARE_80 = (course(16, (512, 512), steps, SGD_02) for steps in (40_000, 80_000))
CAMVID = course(16, (360, 360), 40_000, SGD_02)

SUPERVISED = {"method.name": "supervised", **settings(resize="corners", auxiliary=0.4)}
TAUGHT = settings(task__resize="corners", task__auxiliary=0.4, task__loss="cross_entropy") | settings(
    student_feature="embedding", teacher_feature="embedding"
)
TEACHERS = {"cirkd": "deeplabv3_resnet101_v1", "cirkd_v2": "deeplabv3_resnet101_v2"}
HALVES = {"protocol.kind": "sliding", "protocol.window": (1024, 1024), "protocol.stride": (1024, 1024)}
HALVES["protocol.blend"] = "logits"
WHOLE: Facts = {"protocol.kind": "whole", "protocol.resize": "corners", "protocol.size": None, "protocol.flip": False}


def cirkd_method(name: str, group: int, pixel: float = 0.1, segformer: bool = False) -> Facts:
    """Weights, temperatures and queues of the tables; V1 halves SegFormer's map, V2 quarters it."""
    facts = settings(
        pixel_kd={"weight": 1.0, "temperature": 1.0},
        minibatch__weight=1.0,
        minibatch__temperature=0.1,
        minibatch__group_size=group,
        minibatch__pool={"cirkd": 2, "cirkd_v2": 4}[name] if segformer else 1,
        memory__weight=1.0,
        memory__pixel=pixel,
        memory__region=pixel,
        memory__temperature=0.1,
        memory__softening=1.0,
        memory__pixels=4096,
        memory__regions=1024,
        memory__pixel_slots=2000 if segformer else 20_000,
        memory__region_slots=2000,
        memory__enqueue=16,
        memory__anchors=None,
        memory__precision="fp32",
        memory__compat="published",
    )
    if name == "cirkd_v2":
        channel = {"weight": 1.0, "minibatch": 1.0, "memory": 0.1, "regression": 100.0, "temperature": 0.1}
        channel |= {"softening": 1.0, "group_size": group, "pool": 4, "slots": 10_000, "channels": 2048}
        channel |= {"enqueue": 256, "precision": "fp32", "compat": "published"}
        facts |= settings(context=not segformer, **{f"channel__{key}": value for key, value in channel.items()})
    return facts


def pairs(method: str, of_student: Facts, students: Mapping[str, tuple[str, Facts]]) -> Stages:
    """Each student alone, and taught by the method."""
    found: dict[str, Facts] = {}
    for label, (net, facts) in students.items():
        found[f"baseline_{label}"] = {**of_student, **SUPERVISED, "net": net, "seed": None}
        found[f"{method}_{label}"] = {**of_student, **TAUGHT, **facts, "net": net, "seed": None}
    return found


def cirkd(of_teacher: Facts, of_student: Facts, group: int, *students: str, pixel: float = 0.1) -> Stages:
    """A table of V1: its teacher and its students."""
    facts = {"method.name": "cirkd", **cirkd_method("cirkd", group, pixel)}
    taught = {short(net): (net, facts) for net in students}
    teacher = {**of_teacher, **SUPERVISED, "net": TEACHERS["cirkd"], "seed": 0}
    return {"teacher": teacher, **pairs("cirkd", of_student, taught), "score": WHOLE}


def cirkd_v2(of_student: Facts, group: int, fitnet: Mapping[str, float], of_teacher: Facts | None = None) -> Stages:
    """A table of V2: its teacher, and students with their weight of feature regression."""
    own = {"method.name": "cirkd_v2", **cirkd_method("cirkd_v2", group)}
    taught = {short(net): (net, {**own, "method.fitnet.weight": weight}) for net, weight in fitnet.items()}
    teacher = {**(of_teacher or of_student), **SUPERVISED, "net": TEACHERS["cirkd_v2"], "seed": 0}
    return {"teacher": teacher, **pairs("cirkd_v2", of_student, taught), "score": WHOLE}


def segformer(method: str, facts: Facts, prefix: str = "") -> Stages:
    """The rows of SegFormer, B4 to B0; both are scored on the halves of an image."""
    teacher = {**SEGFORMER, **SUPERVISED, "net": "segformer_b4", "seed": 0}
    taught = pairs(method, SEGFORMER, {"segformer_b0": ("segformer_b0", {"method.name": method, **facts})})
    return {f"{prefix}teacher": teacher, **taught, f"{prefix}score": HALVES}


def short(net: str) -> str:
    """The name of a net in its recipe."""
    return net.replace("resnet", "r").removesuffix("_v1").removesuffix("_v2")


def losses(name: str, of_segformer: Mapping[str, Any] | None = None, **given: Any) -> Stages:
    """A baseline of the tables: DeepLabV3 students on Cityscapes, and SegFormer where it has a row."""

    def method(own: Mapping[str, Any]) -> Facts:
        return {"method.name": "distill", "method.losses": Losses.model_validate(own), "method.context": False}

    students = ("deeplabv3_resnet18_v1", "deeplabv3_mobilenetv2")
    found = {
        "teacher": {**CITY_TEACHER, **SUPERVISED, "net": TEACHERS["cirkd"], "seed": 0},
        **pairs(name, CITY_STUDENT, {short(net): (net, method(given)) for net in students}),
        "score": WHOLE,
    }
    if of_segformer is not None:
        renamed = segformer("distill", method(of_segformer), "segformer_")
        found |= {stage.replace("distill_", f"{name}_"): facts for stage, facts in renamed.items()}
    return found


CRITIC = {"weight": 0.001, "critic_weight": 0.1}
SKD = {"pixel_kd": 1, "skd_pairwise": 10, "skd_holistic": CRITIC}
IFVD = {"pixel_kd": 1, "ifvd": 20, "skd_holistic": CRITIC}
DSD = {"dsd_pixel": 1000, "dsd_category": 10}


def cwd(features: float, logits: float) -> dict[str, Any]:
    """Channel-wise distillation: SegFormer has a tenth of the weights."""
    of_features = {"weight": features, "divisor": "published"}
    return {"pixel_kd": 1, "cwd_features": of_features, "cwd": logits, "skd_holistic": CRITIC}


MOBILE = "mobilenetv3"
CIRKD: dict[str, Stages] = {
    "cirkd/v1_cityscapes_teacher": {
        "teacher": {**CITY_TEACHER, **SUPERVISED, "net": TEACHERS["cirkd"], "seed": 0},
        "score": WHOLE,
    },
    "cirkd/v1_cityscapes": cirkd(
        CITY_TEACHER, CITY_STUDENT, 2, "deeplabv3_resnet18_v1", "deeplabv3_mobilenetv2", "pspnet_resnet18"
    ),
    "cirkd/v1_cityscapes_segformer": segformer("cirkd", TAUGHT | cirkd_method("cirkd", 1, segformer=True)),
    "cirkd/v1_voc": cirkd(SQUARE_40, SQUARE_40, 2, "deeplabv3_resnet18_v1", "pspnet_resnet18", pixel=0.01),
    "cirkd/v1_camvid": cirkd(CAMVID, CAMVID, 2, "deeplabv3_resnet18_v1", "pspnet_resnet18"),
    "cirkd/v1_ade20k": cirkd(SQUARE_40, SQUARE_40, 2, "deeplabv3_resnet18_v1"),
    "cirkd/v1_coco_stuff": cirkd(SQUARE_80, SQUARE_80, 2, "deeplabv3_resnet18_v1"),
    "cirkd/v2_cityscapes": cirkd_v2(
        CITY_TEACHER, 1, {"deeplabv3_resnet18_v2": 1, "upernet_resnet18": 1, f"deeplabv3_{MOBILE}_small": 1}
    ),
    "cirkd/v2_cityscapes_pspnet": cirkd_v2(CITY_TEACHER, 1, {f"pspnet_{MOBILE}_small": 10}),
    "cirkd/v2_cityscapes_mobilevit": cirkd_v2(
        CITY_VIT, 1, {"deeplabv3_mobilevit_xxs": 10, "pspnet_mobilevit_xxs": 1}, CITY_TEACHER
    ),
    "cirkd/v2_cityscapes_segformer": segformer(
        "cirkd_v2", cirkd_method("cirkd_v2", 1, segformer=True) | {"method.fitnet.weight": 1}
    ),
    "cirkd/v2_ade20k": cirkd_v2(SQUARE_80, 2, {"deeplabv3_resnet18_v2": 1, f"pspnet_{MOBILE}_large": 1}),
    "cirkd/v2_ade20k_fitnet10": cirkd_v2(SQUARE_80, 2, {"upernet_resnet18": 10, f"deeplabv3_{MOBILE}_large": 10}),
    "cirkd/v2_voc": cirkd_v2(
        SQUARE_80,
        4,
        {f"{head}_{MOBILE}_{size}": 10 for head in ("deeplabv3", "pspnet") for size in ("small", "large")},
    ),
    "cirkd/v2_coco_stuff": cirkd_v2(SQUARE_80, 2, {f"deeplabv3_{MOBILE}_small": 1}),
    "cirkd/v2_coco_stuff_fitnet10": cirkd_v2(
        SQUARE_80, 2, {"deeplabv3_resnet18_v2": 10, f"deeplabv3_{MOBILE}_large": 10, f"pspnet_{MOBILE}_small": 10}
    ),
    "cirkd/kd_skd": losses("skd", SKD, **SKD),
    "cirkd/kd_ifvd": losses("ifvd", IFVD, **IFVD),
    "cirkd/kd_cwd": losses("cwd", cwd(5, 0.3), **cwd(50, 3)),
    "cirkd/kd_dsd": losses("dsd", DSD, **DSD),
    "cirkd/kd_at": losses("at", pixel_kd=1, at=10_000),
    "cirkd/kd_fitnet": losses("fitnet", pixel_kd=1, fitnet=10),
}

# Few labels. List → labelled and unlabelled images.

CITY = {"1_16": (186, 2789), "1_8": (372, 2603), "1_4": (744, 2231), "1_2": (1488, 1487)}
FINE = {"92": (92, 10490), "183": (183, 10399), "366": (366, 10216), "732": (732, 9850), "1464": (1464, 9118)}
BLENDED = {"662": (662, 9920), "1323": (1323, 9259), "2646": (2646, 7936), "5291": (5291, 5291)}
SOME_BLENDED = {name: BLENDED[name] for name in ("662", "1323", "2646")}
COCO = {f"1_{d}": (ceil(118_287 / d), 118_287 - ceil(118_287 / d)) for d in (512, 256, 128, 64, 32)}
ADE = {f"1_{d}": (round(20_210 / d), 20_210 - round(20_210 / d)) for d in (64, 32, 16, 8)}
R50, R101, TINY_11, TINY_21 = "resnet50s", "resnet101s", "tiny_vit_11m_224", "tiny_vit_21m_512"
DINO_S, DINO_B = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
SHORT = {R50: "r50", R101: "r101", DINO_S: "dinov2_s", DINO_B: "dinov2_b", "xception65.tf_in1k": "xception"}
SHORT |= {f"{TINY_11}.dist_in22k_ft_in1k": "tiny_11m", f"{TINY_21}.dist_in22k_ft_in1k": "tiny_21m"}
STRONG = ColourSettings(
    probability=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, grey=0.2, blur=0.5, blur_sigma=(0.1, 2.0)
)
PATCHES: Facts = {**WHOLE, "protocol.multiple": 32}


def windows(size: int, stride: int, border: str, blend: str) -> Facts:
    """Sliding windows, and how their answers are averaged."""
    found = {"kind": "sliding", "window": (size, size), "stride": (stride, stride), "border": border, "blend": blend}
    return {f"protocol.{name}": value for name, value in {**found, "resize": "corners"}.items()}


def epoch(images: tuple[int, int], gpus: int, each: int, longest: bool = False) -> int:
    """Steps of an epoch: the sampler fills up so that GPUs have as many, the loader drops an incomplete batch.

    ``longest``: a round of the longer list in batches of all GPUs; else one of the unlabelled list.
    """
    return max(images) // (gpus * each) if longest else ceil(images[1] / gpus) // each


def few_labels(
    method: str,
    lists: Mapping[str, tuple[int, int]],
    nets: tuple[str, ...],
    crop: int,
    gpus: tuple[int, int],
    epochs: int | Mapping[str, int],
    protocol: Facts,
    own: Facts,
    rates: Facts,
    min_kept: int | None = None,
    longest: bool = False,
    warm_up: int = 0,
    views: tuple[str, ...] = (),
) -> Stages:
    """Each net on each list. ``gpus``: how many, and images of each stream on each; ``min_kept``: OHEM's, per GPU."""
    found: dict[str, Facts] = {"score": protocol}
    for net in nets:
        for name, images in lists.items():
            steps = epoch(images, *gpus, longest)
            facts = {
                "method.name": method,
                "net.encoder": net,
                "steps": steps * (epochs if isinstance(epochs, int) else epochs[name]),
                "evaluate.every": steps,
                "keep": "best",
                "streams.*.batch": gpus[0] * gpus[1],
                "streams.*.repeat": None,
                "streams.*.draws_of": None,
                **augment(crop=(crop, crop), scale=(0.5, 2.0), flip=0.5),
                "streams.labeled.views": {},
                **(poly() | rates),
                **settings(task__resize="corners", task__class_weights=None, task__smoothing=0.0, task__dice=0.0),
                "method.task.loss": "cross_entropy" if min_kept is None else "ohem",
                **own,
            }
            for stream in ("labeled", "unlabeled"):
                facts[f"streams.{stream}.data"] = f"{stream}_{name}"
            if min_kept is not None:
                facts |= settings(task__ohem_threshold=0.7, task__ohem_min_kept=min_kept)
            if warm_up:
                facts["method.supervised_steps"] = warm_up * steps
            facts["streams.unlabeled.views"] = {view: ViewSettings(colour=STRONG) for view in views}
            found[f"{SHORT[net]}_{name}"] = facts
    return found


TWO_VIEWS = ("strong", "strong2")
LAG = poly(lag=1)
UNIMATCH = settings(threshold=0.95, cutmix=0.5, pseudo_labels="student", weight=1.0)
UNIMATCH_RATES = optimizer("sgd", 0.01, 1e-4, 0.001) | LAG
V2 = settings(threshold=0.95, cutmix=0.5, decay=0.996, partner="reversed", weight=1.0)
V2_OWN = V2 | settings(complementary_dropout=True)
V2_RATES = optimizer("adamw", 2e-4, 0.01, 5e-6) | LAG
SHIFTED_512, SHIFTED_800 = (windows(size, stride, "shifted", "logits") for size, stride in ((512, 342), (800, 534)))


def unimatch_voc(lists: Mapping[str, tuple[int, int]], nets: tuple[str, ...], crop: int) -> Stages:
    """UniMatch on VOC."""
    own, rates = UNIMATCH, UNIMATCH_RATES
    return few_labels("unimatch", lists, nets, crop, (4, 2), 80, WHOLE, own, rates, views=TWO_VIEWS)


def summed(head_rate: float, decay: float, gpus: int) -> Facts:
    """Rates where published gradients are divided by the number of GPUs twice; norms and biases are not decayed."""
    return optimizer("sgd", head_rate / gpus, decay * gpus) | {"optimizer.decay_norm_and_bias": False}


SEVEN = {"streams.*.augment.scale_steps": 7}


def cps_voc(method: str, own: Facts) -> Stages:
    """CPS and its mean teacher on VOC: epochs so that all lists take about as many steps."""
    epochs = {"662": 32, "1323": 34, "2646": 40, "5291": 60}
    rates = summed(0.01, 1e-4, 4)
    return few_labels(method, BLENDED, (R50, R101), 512, (4, 2), epochs, SHIFTED_512, own | SEVEN, rates, longest=True)


def cps_city(method: str, own: Facts) -> Stages:
    """CPS and its mean teacher on Cityscapes."""
    epochs = {"1_16": 128, "1_8": 137, "1_4": 160, "1_2": 240}
    rates = summed(0.02, 1e-4, 8)
    return few_labels(
        method, CITY, (R50, R101), 800, (8, 1), epochs, SHIFTED_800, own | SEVEN, rates, 50_000, longest=True
    )


def cps(weight: float, cutmix: bool) -> Facts:
    """The settings of CPS."""
    return settings(weight=weight, cutmix=cutmix, threshold=None)


MEAN_TEACHER = settings(weight=100.0, ramp_steps=0, decay=0.99, ramp_decay=False)
U2PL = settings(
    weight=1.0,
    keep_percent=80.0,
    alpha=20.0,
    low_rank=3,
    high_rank=20,
    delta_p=0.3,
    delta_n=1.0,
    temperature=0.5,
    dimensions=256,
    anchors=256,
    negatives_per_anchor=50,
    queue=30_000,
    queue_first=50_000,
    keys=None,
    precision="fp32",
    mixing_probability=0.5,
    decay=0.99,
    negatives="published",
    indexing="published",
    onehot="published",
)


def u2pl_voc(lists: Mapping[str, tuple[int, int]]) -> Stages:
    """U2PL on VOC: an epoch on labels alone first; the contrast's weight is divided by the number of GPUs."""
    own = U2PL | settings(weight_contrast=1 / 4, task__auxiliary=0.4)
    rates = optimizer("sgd", 0.01, 1e-4, 0.001)
    return few_labels("u2pl", lists, (R101,), 513, (4, 4), 80, WHOLE, own, rates, warm_up=1)


TRIKD = settings(
    student_weight=1.0,
    cnn_weight=1.0,
    vit_weight=1.0,
    cps_weight=0.1,
    cps_padding=True,
    attention_weight=0.5,
    attention_resize="published",
    kl="elements",
    vit_schedule="published",
    cnn_optimizer=None,
    vit_optimizer=None,
    vit_task__loss="cross_entropy",
    vit_task__resize="corners",
)


def trikd() -> Stages:
    """Tri-view distillation; the weight of the spatial loss depends on the student."""
    found: dict[str, Facts] = {}
    for net, spatial in ((TINY_11, 0.9), (TINY_21, 0.5)):
        own = {**TRIKD, "precision": "fp16", "method.spatial_weight": spatial}
        rates = optimizer("sgd", 0.005, 1e-4) | LAG
        nets, lists = (f"{net}.dist_in22k_ft_in1k",), {"1_30": (100, 2875), **CITY}
        found |= few_labels("trikd", lists, nets, 512, (4, 2), 300, SHIFTED_512, own, rates, 200_000)
    return found


FEW_LABELS: dict[str, Stages] = {
    "trikd/cityscapes": trikd(),
    "unimatch/cityscapes": few_labels(
        "unimatch",
        CITY,
        (R50, R101),
        801,
        (4, 2),
        240,
        windows(801, 534, "truncated", "probabilities"),
        UNIMATCH | settings(threshold=0.0),
        optimizer("sgd", 0.005, 1e-4) | LAG,
        200_000,
        views=TWO_VIEWS,
    ),
    "unimatch/voc": unimatch_voc(FINE, (R50, R101), 321),
    "unimatch/voc_blended": unimatch_voc(SOME_BLENDED, (R101,), 321),
    "unimatch/voc_blended_513": unimatch_voc(SOME_BLENDED, (R50, R101), 513),
    "unimatch/coco": few_labels(
        "unimatch",
        COCO,
        ("xception65.tf_in1k",),
        513,
        (8, 1),
        30,
        WHOLE,
        UNIMATCH,
        optimizer("sgd", 0.04, 1e-4, 0.004) | LAG,
        views=TWO_VIEWS,
    ),
    "unimatch_v2/voc": few_labels(
        "unimatch_v2", FINE, (DINO_S, DINO_B), 518, (4, 4), 60, PATCHES, V2_OWN, V2_RATES, views=TWO_VIEWS
    ),
    "unimatch_v2/cityscapes": few_labels(
        "unimatch_v2",
        CITY,
        (DINO_S, DINO_B),
        798,
        (4, 2),
        180,
        windows(798, 532, "shifted", "probabilities"),
        V2_OWN,
        V2_RATES,
        200_000,
        views=TWO_VIEWS,
    ),
    "unimatch_v2/coco": few_labels(
        "unimatch_v2", COCO, (DINO_B,), 518, (4, 4), 20, PATCHES, V2_OWN, V2_RATES, views=TWO_VIEWS
    ),
    "unimatch_v2/ade20k": few_labels(
        "unimatch_v2", ADE, (DINO_B,), 518, (4, 2), 60, PATCHES, V2_OWN, V2_RATES, views=TWO_VIEWS
    ),
    "fixmatch/voc": few_labels(
        "fixmatch",
        FINE,
        (DINO_B,),
        518,
        (4, 4),
        60,
        PATCHES,
        V2 | settings(pseudo_labels="ema"),
        V2_RATES,
        views=("strong",),
    ),
    "cps/voc": cps_voc("cps", cps(1.5, False)),
    "cps/voc_cutmix": cps_voc("cps", cps(1.0, True)),
    "cps/cityscapes": cps_city("cps", cps(6.0, False)),
    "cps/cityscapes_cutmix": cps_city("cps", cps(5.0, True)),
    "mean_teacher/voc": cps_voc("mean_teacher", MEAN_TEACHER),
    "mean_teacher/cityscapes": cps_city("mean_teacher", MEAN_TEACHER),
    "u2pl/voc": u2pl_voc(FINE),
    "u2pl/voc_blended": u2pl_voc(BLENDED),
    "u2pl/cityscapes": few_labels(
        "u2pl",
        CITY,
        (R101,),
        769,
        (8, 2),
        200,
        windows(769, 513, "shifted", "logits"),
        U2PL | settings(weight_contrast=1 / 8, supervised_steps=0),
        optimizer("sgd", 0.01, 5e-4),
        100_000,
    ),
}

# Another domain: AdvEnt, MinEnt, AdaptSegNet, FDA, CBST.

SOURCES = ("gta5", "synthia")
SOURCE_SIZE = {"gta5": (720, 1280), "synthia": (760, 1280)}
SOURCE_IMAGES = {"gta5": 24_966, "synthia": 9_400}
OLD_NET = {"net.encoder": "resnet101.tv_in1k", "net.stride": 8, "net.frozen_norm": "affine"}
OLD_RATES = optimizer("sgd", 2.5e-3, 5e-4, 2.5e-4)
LAST = {"keep": "last", "evaluate": None}


def sixteen(source: str) -> Stages:
    """A recipe that trains SYNTHIA's 16 classes alone, and its score."""
    synthia = source == "synthia"
    whole: Facts = {"classes": SIXTEEN if synthia else None}
    return {
        "": whole,
        "score": {"data": "val", "protocol.resize": "corners", "subsets": {"thirteen": THIRTEEN} if synthia else {}},
    }


def adversarial(source: str, method: str, steps: int, decoder: str, own: Facts) -> Facts:
    """One image of each domain in a step; the rate falls as if there were 250 000 steps."""
    rates = OLD_RATES | poly(horizon=250_000) | OLD_NET | LAST
    facts = rates | {"method.name": method, "steps": steps, "streams.*.batch": 1, "net.decoder": decoder} | own
    labelled = "labeled" if method == "supervised" else "source"
    facts |= augment(labelled, resize=SOURCE_SIZE[source]) | {f"streams.{labelled}.data": "all"}
    if method == "supervised":
        return facts | settings(resize="corners", auxiliary=0.1)
    facts |= augment("target", resize=STREET) | {"streams.target.data": "train"}
    return facts | settings(task__resize="corners", task__auxiliary=0.1)


DISCRIMINATOR = settings(
    critic_optimizer__kind="adam",
    critic_optimizer__lr=1e-4,
    critic_optimizer__betas=(0.9, 0.99),
    critic_schedule__kind="poly",
    critic_schedule__power=0.9,
    critic_schedule__horizon=250_000,
)


def at_street(source: str) -> Stages:
    """Scores at half of Cityscapes' size."""
    return {stage: facts | ({"protocol.size": STREET} if stage else {}) for stage, facts in sixteen(source).items()}


def advent(source: str) -> Stages:
    """Vu et al., CVPR 2019."""
    levels = settings(maps="self_information", adversarial=0.001, adversarial_auxiliary=0.0002, entropy=0.0)
    return {
        "source_only": adversarial(source, "supervised", 120_000, "deeplabv2", {}),
        "advent": adversarial(source, "advent", 120_000, "deeplabv2", levels | DISCRIMINATOR),
        **at_street(source),
    }


def minent(source: str) -> Stages:
    """Its direct minimisation of entropy."""
    levels = settings(entropy=0.001, entropy_auxiliary=0.0002)
    return {
        "source_only": adversarial(source, "supervised", 120_000, "deeplabv2", {}),
        "minent": adversarial(source, "minent", 120_000, "deeplabv2", levels),
        **at_street(source),
    }


def adaptsegnet(source: str) -> Stages:
    """Tsai et al., CVPR 2018: two levels for both data sets, single levels for GTA5 alone."""
    two, one = {"net.auxiliary": True, **DISCRIMINATOR}, {"net.auxiliary": False, **DISCRIMINATOR}
    rows = {
        "two_levels": two | settings(maps="softmax", loss="bce", adversarial=0.001, adversarial_auxiliary=0.0002),
        "one_level": one | settings(maps="softmax", loss="bce", adversarial=0.001),
        "least_squares": one | settings(loss="least_squares", adversarial=0.01),
    }
    rows = rows if source == "gta5" else {"two_levels": rows["two_levels"]}
    found = {name: adversarial(source, "adaptsegnet", 150_000, "deeplabv2_reduced", row) for name, row in rows.items()}
    alone = adversarial(source, "supervised", 120_000, "deeplabv2_reduced", {"net.auxiliary": True})
    return {"source_only": alone, **found, **at_street(source)}


def fda(source: str) -> Stages:
    """Yang and Soatto, CVPR 2020: three bands, then two rounds on what their nets agree on."""
    bands = {"01": 0.01, "05": 0.05, "09": 0.09}
    entropy = settings(entropy=0.005, entropy_eta=2.0, entropy_normaliser=2.9444, entropy_start=0)
    shared = OLD_RATES | poly(horizon=150_000) | OLD_NET | LAST | entropy
    shared |= {"steps": 100_000, "streams.*.batch": 1, "init": {}, "net.decoder": "deeplabv2"}
    shared |= augment("source", resize=SOURCE_SIZE[source], crop=STREET) | augment("target", resize=STREET)
    found: dict[str, Facts] = {}
    for name, beta in bands.items():
        style = settings(style__kind="fda", style__beta=beta, task__resize="corners")
        found[f"beta_{name}"] = shared | style | {"method.name": "fda", "streams.target.data": "train"}
        for number in (1, 2):
            pseudo = {"method.name": "fda_self_training", "method.pseudo": 1.0}
            labels = [f"labels_{number}_{band}" for band in bands]
            found[f"round_{number}_{name}"] = shared | style | pseudo | {"streams.target.data": labels}
            net = f"beta_{name}" if number == 1 else f"round_1_{name}"
            policy = {"policy.kind": "class_quantile", "policy.quantile": 0.66, "policy.cap": 0.9}
            found[f"labels_{number}_{name}"] = {"net": net, "data": "train", "protocol.size": STREET, **policy}
    size = {"protocol.size": (576, 1344), "protocol.resize": "corners"}
    return {"": {"classes": None}, **found, "score": {"data": "val", "subsets": SUBSETS[source], **size}}


def cbst(source: str) -> Stages:
    """Zou et al., ECCV 2018 and ICCV 2019: three rounds of two epochs, with a growing part of both domains."""
    net = OLD_NET | {"net.frozen_norm": "all", "net.decoder": "deeplabv2"}
    first = OLD_RATES | net | LAST | {"steps": 100_000, "streams.*.batch": 4, "streams.*.augment.crop": (500, 500)}
    found: dict[str, Facts] = {"source": {**first, "method.name": "supervised", "method.resize": "corners"}}
    for name, regulariser in (("cbst", 0.0), ("mrkld", 0.1)):
        for number in range(3):
            before = f"{name}_{number - 1}" if number else "source"
            labels = f"{name}_labels_{number}" if number else "labels_0"
            of_source = (0.03 + 0.0025 * number) * SOURCE_IMAGES[source]
            found[labels] = {
                "net": before,
                "policy.kind": "class_ratio",
                "policy.portion": 0.2 + 0.05 * number,
                "protocol.scales": (0.9,),
                "protocol.flip": True,
                "protocol.resize": "corners",
            }
            found[f"{name}_{number}"] = {
                **(optimizer("sgd", 5e-4, 5e-4, 5e-5) | net | LAST),
                **settings(name="cbst", regulariser=regulariser, task__resize="corners"),
                **augment(crop=STREET, scale=(0.5, 1.5), scale_steps=11, flip=0.5),
                "schedule.kind": "constant",
                "init": {"student": before},
                "streams.target.data": labels,
                "streams.target.sampler.share": 0.001,
                "streams.target.sampler.probability": 0.8,
                "images": pytest.approx(2 * (of_source + CITY_TRAIN), abs=4),
                "source_share": pytest.approx(of_source / (of_source + CITY_TRAIN), abs=0.17),
            }
    protocol = {"protocol.scales": (0.9, 1.0, 1.2), "protocol.flip": True, "protocol.blend": "logits"}
    whole = sixteen(source)
    return {**found, **whole, "score": whole["score"] | protocol}


# DACS, DAFormer, HRDA and MIC.

MIXED_SIZE = {"gta5": (1440, 2560), "synthia": (1520, 2560)}


def mixed(method: str, source: str) -> Stages:
    """Class mixing; HRDA and what builds on it see images at twice the size."""
    old, large = method == "dacs", "hrda" in method
    side = 1024 if large else 512
    target, small = (None if large else STREET), SOURCE_SIZE[source]
    facts: Facts = LAST | {
        "streams.*.batch": 2,
        "steps": 250_000 if old else 40_000,
        "streams.source.data": "all",
        "streams.target.data": "train",
    }
    flip = 0.0 if old else 0.5
    facts |= augment("source", resize=MIXED_SIZE[source] if large else small, crop=(side, side), flip=flip)
    facts |= augment("target", resize=target, crop=(side, side), flip=flip)
    if old:
        facts |= optimizer("sgd", 2.5e-3, 5e-4, 2.5e-4) | poly() | OLD_NET | {"net.decoder": "deeplabv2_reduced"}
        facts["streams.source.sampler"] = None
    else:
        facts |= optimizer("adamw", 6e-4, 0.01, 6e-5) | poly(1.0, warmup=1500, warmup_ratio=1e-6)
        facts |= {"net.encoder": "mit_b5", "net.decoder": "daformer", "net.width": 256, "net.drop_path": 0.1}
        facts["optimizer.decay_norm_and_bias"] = False
        # Published: the first crop, and ten more where it has too little of the class.
        sampler = {"temperature": 0.01, "pixels": 3000, "tries": 11, "crop_share": 2.0 if large else 0.5}
        facts |= {f"streams.source.sampler.{name}": value for name, value in sampler.items()}
        facts["streams.source.augment.class_cap"] = 0.75
    own: Facts = {"threshold": 0.968, "weight": 1.0, "weighting": "share"}
    own |= {"decay": 0.99 if old else 0.999, "classes_from": "image" if old else "batch"}
    own |= {"reduction": "valid" if old else "all", "colour.probability": 0.8}
    own |= {f"colour.{name}": 0.25 if old else 0.2 for name in ("brightness", "contrast", "saturation", "hue")}
    own |= {"colour.blur": 0.5, "colour.blur_sigma": (0.15, 1.15), "task.resize": "corners" if old else "centers"}
    margins = (0, 0, 0, 0) if old else (30, 240, 30, 30) if large else (15, 120, 0, 0)
    own |= dict(zip((f"margins.{edge}" for edge in ("top", "bottom", "left", "right")), margins, strict=True))
    if not old:
        own |= {"margins.of": "image" if large else "crop"}
        own |= {"feature_distance.weight": 0.005, "feature_distance.share": 0.75}
        # SYNTHIA has neither trucks nor trains.
        own["feature_distance.things"] = [
            name for name in NINETEEN[6:8] + NINETEEN[11:] if source == "gta5" or name not in ("truck", "train")
        ]
    if large:
        own |= {"detail_weight": 0.1, "multi_resolution.detail": (512, 512)}
    host = method.removeprefix("mic_")
    if method.startswith("mic"):
        own |= {
            f"masked_consistency.{name}": value for name, value in (("weight", 1.0), ("ratio", 0.7), ("colours", True))
        }
        own["masked_consistency.block"] = 64 if large else 32
        host = "mic" if host == "daformer" else host
    facts |= {"method.name": host} | {f"method.{name}": value for name, value in own.items()}
    score: Facts = {"data": "val", "protocol.resize": "corners" if old else "centers", "subsets": SUBSETS[source]}
    if large:
        score |= {"protocol.kind": "sliding", "protocol.window": (1024, 1024), "protocol.stride": (512, 512)}
    else:
        score |= {"protocol.kind": "whole", "protocol.size": STREET}
    # 19 outputs for both sources, as published.
    return {"": {"classes": None}, method.partition("_")[0]: facts, "score": score}


# In stages: ProDA, PBAL, BiSMAP. Sources are resized to a width of 2200.

STAGED = augment(crop=(512, 896), scale=(0.5, 1.5), flip=0.5) | {"streams.*.batch": 4}
WIDE = 2200
JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}


def wide(height: int, width: int) -> tuple[int, int]:
    """The size of an image at a width of 2200."""
    return round(WIDE * height / width), WIDE


def sizes(source: tuple[int, int], target: tuple[int, int]) -> Facts:
    """Sizes of the images of both domains."""
    return {"streams.source.augment.resize": source, "streams.target.augment.resize": target}


def proda(source: str) -> Stages:
    """Zhang et al., CVPR 2021: 84 epochs of 743 steps in each stage."""
    # Published: 1209 rows where the ratio gives 1210.
    images = {"gta5": (1209, WIDE), "synthia": wide(760, 1280)}[source]
    shared = STAGED | poly(horizon=90_000) | {"steps": 84 * 743, **sizes(images, (1100, WIDE))}
    shared |= {"keep": "best_on_target", "evaluate.data": "val", "evaluate.every": 1000}

    def rates(rate: float, head: float) -> Facts:
        return shared | optimizer("sgd", rate * head, 2e-4, rate) | settings(task__resize="corners")

    distilled = settings(name="self_distill", form="code", kd=1.0, target_loss="cross_entropy", view="strong", grid=4)
    labels = {"policy.kind": "threshold", "policy.threshold": 0.95, "protocol.flip": True, "data": "train"}
    own = settings(alpha=0.1, beta=1.0, regularizer="mrkld", regularizer_weight=0.1 if source == "gta5" else 0.0)
    own |= settings(name="proda", structure=10.0, temperature=1.0, threshold=0.0, rate=1e-4, decay=0.999, grid=4)
    own |= settings(cache__top=8, min_pixels=10, labels_from="weak")
    return {
        "warm_up": rates(2.5e-4, 10) | settings(name="adaptsegnet", loss="least_squares", adversarial=0.01),
        "prototypes": {
            "what.kind": "means",
            "what.epochs": 4,
            "what.min_pixels": 10,
            "what.count_cap": 3000,
            "what.labels": False,
            "net": "warm_up",
        },
        "stage1": rates(1e-4, 1)
        | own
        | {"init": {"student": "warm_up"}, "streams.target.views.full.augment.crop": None},
        "labels1": {**labels, "net": "stage1"},
        "stage2": rates(6e-4, 10) | distilled | {"inputs": {"teacher": "stage1"}, "streams.target.data": "labels1"},
        "labels2": {**labels, "net": "stage2"},
        "stage3": rates(6e-4, 10)
        | distilled
        | {"inputs": {"teacher": "stage2"}, "streams.target.data": "labels2", "init": {"student": "stage2"}},
        "score": {"data": "val"},
    }


def pbal(source: str) -> Stages:
    """Warm-up, bidirectional alignment, self-training, and two rounds of distillation from SimCLR's weights."""
    images = wide(*{"gta5": (1052, 1914), "synthia": (760, 1280)}[source])

    def training(method: str, steps: int, horizon: int, rate: float, *own: Facts) -> Facts:
        facts = STAGED | LAST | poly(horizon=horizon) | optimizer("sgd", 10 * rate, 2e-4, rate)
        facts |= {"steps": steps, "method.name": method, "method.task.resize": "corners", "init": {}}
        facts["net.decoder"] = "deeplabv3plus_pbal"
        facts |= sizes(images, wide(1024, 2048))
        for one in own:
            facts |= one
        return facts

    def align(weight: float, horizon: int) -> Facts:
        critic = settings(critic_optimizer__kind="adam", critic_optimizer__lr=1e-4, critic_optimizer__betas=(0.9, 0.99))
        critic |= settings(critic_optimizer__weight_decay=0.0, critic_schedule__horizon=horizon)
        own = settings(weight=weight, adversarial=0.01, scope="global", prototype_grad=False)
        own |= settings(pixel_to_prototype=True, prototype_to_pixel=True)
        return critic | own | colour("source", "strong", **JITTER) | {"streams.target.views": {}}

    simclr: Facts = {"net.encoder": "resnet101_multigrid", "nets": {"student": "simclr"}}

    def distil(teacher: str) -> Facts:
        reads = {"streams.target.data": f"labels_of_{teacher}", "inputs": {"teacher": teacher}}
        return settings(kd=1.0, form="log", target_loss="cross_entropy") | reads | simclr

    contrast = settings(contrast_source=1.0, contrast_target=1.0, temperature=0.07, reduction="all")
    contrast |= settings(prototype_grad=True, projection="none", normalise_target=True)
    contrast |= colour("*", "strong", **JITTER) | {"streams.target.data": "pseudo_labels"}
    imagenet = {"net.encoder": "resnet101_multigrid.tv_in1k", "nets": {"student": "imagenet"}}
    dense = {"policy.kind": "threshold", "policy.threshold": 0.95, "protocol.flip": True, "data": "train"}
    median = {"policy.kind": "class_quantile", "policy.quantile": 0.5, "policy.cap": 0.9, "data": "train"}
    after_warm_up = {"init": {"student": "warm_up"}}
    after_first = {"init": {"student": "distilled_once"}}
    return {
        "warm_up": training("pbal_bpl", 20_000, 31_250, 2.5e-4, imagenet, align(0.0, 31_250)),
        "bidirectional": training("pbal_bpl", 60_000, 90_000, 1e-4, imagenet, align(0.1, 90_000), after_warm_up),
        "pseudo_labels": {**median, **WHOLE, "net": "bidirectional"},
        "self_training": training("pbal_pst", 60_000, 90_000, 2.5e-4, imagenet, contrast),
        "labels_of_self_training": {**dense, "net": "self_training"},
        "distilled_once": training("self_distill", 62_412, 90_000, 6e-4, distil("self_training")),
        "labels_of_distilled_once": {**dense, "net": "distilled_once"},
        "distilled_twice": training("self_distill", 62_412, 90_000, 6e-4, distil("distilled_once"), after_first),
        "score": {"data": "val"},
    }


def bismap(file: str) -> Stages:
    """Lu et al.: labels of two domains weighed, mixtures of features, and two rounds of distillation.

    ``gta5_repaired`` corrects errors of the published code, and keeps the last weights, not those that score best.
    """
    repaired, source = file == "gta5_repaired", file.removesuffix("_repaired")
    # Published: 1209 rows where the ratio gives 1210.
    images = {"gta5": (1209, WIDE), "synthia": wide(760, 1280)}[source]
    tried = {"class_cap": 1.0, "class_cap_attempts": 20}
    shared = STAGED | optimizer("sgd", 5e-3, 5e-4, 5e-4) | sizes(images, (1024, 2048))
    shared |= poly(warmup=400, warmup_ratio=0.0, least_lr=1e-7) | {"steps": 90_000, "precision": "fp16"}
    shared |= {"streams.source.data": "stylised", "streams.source.weights": "transferability"}
    shared |= {f"streams.source.augment.{name}": value for name, value in tried.items()}
    shared |= colour("source", "weak", **JITTER) | colour("target", "weak", **JITTER)
    shared |= colour("target", "weak", brightness=0.1, hue=0.1)
    if repaired:
        shared |= LAST
    else:
        shared |= {"evaluate.data": "val", "evaluate.every": 1000, "keep": "best_on_target"}
    capped = {f"streams.target.augment.{name}": value for name, value in tried.items()}
    teach = settings(consistency=30.0, ramp_steps=4000, decay=0.999, teacher_norm="batch", source=1.0, resize="corners")
    symmetric = settings(alpha=0.1, beta=1.0)
    # A mean over pixels and classes, times the number of classes, is one over pixels.
    kd = settings(kd=19.0, form="log") if repaired else settings(kd=1.0, form="code")
    distil = kd | symmetric | settings(name="self_distill", target_loss="symmetric", view="weak", grid=1)
    distil |= settings(task__resize="corners") | {"init": {}, "nets": {"student": "simclr_r101"}}
    imagenet = {"nets": {"student": "imagenet_r101"}, "streams.target.views.masked": MASKED_VIEW}
    averaged = {"protocol.scales": (0.75, 1.0, 1.5), "protocol.flip": True, "protocol.blend": "logits"}
    dense = {"policy.kind": "argmax", "data": "train", **averaged}
    weights: Facts = {"what.size": (128, 256), "what.pool": (1, 2), "what.centres": 40, "what.rows": 1_000_000}
    weights |= {"what.scale": "global" if repaired else "ema", "what.momentum": 0.99}
    chosen = {"policy.quantile": 0.5} if repaired else {"policy.threshold": 100}
    weights |= {} if repaired else {"what.bonus": source}
    return {
        "": {"seed": 100},
        "stylised": {"data": "all", "target": "train"},
        "transferability": {"encoder": "simclr_r152", "data": "stylised", "target": "train", **weights},
        "warm_up": shared | teach | imagenet | {"method.name": "bismap_warm_up"},
        "mixtures": {
            "what.components": 8,
            "what.samples": 300_000,
            "what.rates": source,
            "what.compat": "corrected" if repaired else "published",
            "net": "warm_up",
            "data": "stylised",
            "protocol.precision": "fp16",
        },
        "pseudo_labels": {"policy.kind": "mixtures", "policy.mixtures": "mixtures", "net": "warm_up", **chosen},
        "self_training": shared | capped | teach | symmetric | imagenet | {"method.name": "bismap"},
        "labels_of_self_training": {**dense, "net": "self_training"},
        "distilled_once": shared | capped | distil | {"inputs": {"teacher": "self_training"}},
        "labels_of_distilled_once": {**dense, "net": "distilled_once"},
        "distilled_twice": shared | capped | distil | {"inputs": {"teacher": "distilled_once"}},
        "score": {"data": "val", "subsets": SUBSETS[source], **WHOLE},
    }


PUBLISHED: dict[str, Stages] = {
    **CIRKD,
    **FEW_LABELS,
    **{
        f"{made.__name__}/{source}": made(source)
        for made in (advent, minent, adaptsegnet, fda, cbst)
        for source in SOURCES
    },
    **{f"{name}/{source}": mixed(name, source) for name in ("dacs", "daformer", "hrda") for source in SOURCES},
    **{f"mic/{source}_{host}": mixed(f"mic_{host}", source) for source in SOURCES for host in ("daformer", "hrda")},
    **{f"{made.__name__}/{source}": made(source) for made in (proda, pbal) for source in SOURCES},
    **{f"bismap/{file}": bismap(file) for file in ("gta5", "gta5_repaired", "synthia")},
}
"""Recipe → stage → facts. A recipe has these stages and reports, nothing else."""
