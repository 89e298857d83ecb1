"""The published nets by name, and the names of their tensors in the published files. Imports without torch."""

from __future__ import annotations

from tutelage.nets.settings import NetSettings

# CIRKD's pairs (section 2.3). A name without a version is the same net in both.
NETS: dict[str, NetSettings] = {
    "deeplabv3_resnet18_v1": NetSettings(encoder="cirkd_resnet18", decoder="deeplabv3"),
    "deeplabv3_resnet18_v2": NetSettings(encoder="cirkd_resnet18", decoder="deeplabv3", width=512),
    "deeplabv3_resnet101_v1": NetSettings(encoder="cirkd_resnet101", decoder="deeplabv3"),
    "deeplabv3_resnet101_v2": NetSettings(encoder="cirkd_resnet101", decoder="deeplabv3", width=512),
    "pspnet_resnet18": NetSettings(encoder="cirkd_resnet18", decoder="pspnet"),
    "pspnet_resnet101_v1": NetSettings(encoder="cirkd_resnet101", decoder="pspnet"),
    "pspnet_resnet101_v2": NetSettings(encoder="cirkd_resnet101", decoder="pspnet", width=256),
    "upernet_resnet18": NetSettings(encoder="cirkd_resnet18", decoder="upernet"),
    "deeplabv3_mobilenetv2": NetSettings(encoder="cirkd_mobilenetv2", decoder="deeplabv3"),
    "deeplabv3_mobilenetv3_small": NetSettings(encoder="cirkd_mobilenetv3_small", decoder="deeplabv3"),
    "deeplabv3_mobilenetv3_large": NetSettings(encoder="cirkd_mobilenetv3_large", decoder="deeplabv3"),
    "deeplabv3_mobilevit_xxs": NetSettings(encoder="cirkd_mobilevit_xxs", decoder="deeplabv3"),
    "pspnet_mobilenetv3_small": NetSettings(encoder="cirkd_mobilenetv3_small", decoder="pspnet"),
    "pspnet_mobilenetv3_large": NetSettings(encoder="cirkd_mobilenetv3_large", decoder="pspnet"),
    "pspnet_mobilevit_xxs": NetSettings(encoder="cirkd_mobilevit_xxs", decoder="pspnet"),
    "segformer_b0": NetSettings(encoder="cirkd_mit_b0", decoder="segformer"),
    "segformer_b4": NetSettings(encoder="cirkd_mit_b4", decoder="segformer"),
}

# Prefix of a tensor's name here → in the published files.
_ENCODER = {"cirkd_mobilenetv2": "pretrained.net.", "cirkd_mit_b0": "", "cirkd_mit_b4": ""}
_HEAD = {
    "deeplabv3": {
        "decoder.aspp.point.": "head.aspp.b0.",
        "decoder.aspp.atrous.0.": "head.aspp.b1.block.",
        "decoder.aspp.atrous.1.": "head.aspp.b2.block.",
        "decoder.aspp.atrous.2.": "head.aspp.b3.block.",
        "decoder.aspp.whole.": "head.aspp.b4.gap.",
        "decoder.aspp.project.": "head.aspp.project.",
        "decoder.bottleneck.": "head.block.",
        "classifier.": "head.block.4.",
    },
    "pspnet": {
        **{f"decoder.pyramid.{i}.": f"head.psp.conv{i + 1}." for i in range(4)},
        "decoder.bottleneck.": "head.block.",
        "classifier.": "head.classifier.",
    },
    "upernet": {
        "decoder.pyramid.": "head.ppm_conv.",
        "decoder.fuse_pyramid.": "head.ppm_last_conv.",
        "decoder.lateral.": "head.fpn_in.",
        **{f"decoder.smooth.{i}.": f"head.fpn_out.{i}.0." for i in range(3)},
        "decoder.bottleneck.": "head.conv_last.0.",
        "classifier.": "head.conv_last.1.",
    },
    "segformer": {
        **{f"decoder.embed.{i}.": f"linear_c{i + 1}.proj." for i in range(4)},
        "decoder.fuse.": "linear_fuse.",
        "classifier.": "linear_pred.",
    },
}


def published_name(tensor: str, settings: NetSettings) -> str:
    """Name in the published files of a tensor of a :class:`~tutelage.nets.segmentor.Segmentor` of ``settings``.

    Raises ``KeyError`` for tensors that they do not hold: the mean and deviation of the input.
    """
    prefixes = {
        "encoder.": _ENCODER.get(settings.encoder, "pretrained."),
        "auxiliary.": "auxlayer.block.",
        **_HEAD[settings.decoder],
    }
    for ours, theirs in prefixes.items():
        if tensor.startswith(ours):
            # MobileViT's attention was torch's module, whose first projection is not a layer of its own.
            return theirs + tensor.removeprefix(ours).replace(".in_proj.", ".in_proj_")
    raise KeyError(tensor)
