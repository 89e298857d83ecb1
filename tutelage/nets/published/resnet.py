"""ResNet-18 and ResNet-101 with the "deep stem" at output stride 8 (section 2.1 of CIRKD's specification).

timm's ResNet has the same blocks and dilation rule: the first block of a stage keeps the dilation of the stage before.
Only the stem has other names in the published files.
"""

from __future__ import annotations

from torch import Tensor, nn

import tutelage.torchvision_operators  # noqa: F401  (before timm)

import timm  # isort: skip


class DeepStemResNet(nn.Module):
    """``name`` is ``resnet18`` or ``resnet101``; three 3x3 convolutions, max-pooling, four stages."""

    def __init__(self, name: str) -> None:
        super().__init__()
        net = timm.create_model(
            name, stem_type="deep", stem_width=64, output_stride=8, num_classes=0, zero_init_last=False
        )
        self.conv1, self.bn1, _, self.conv2, self.bn2, _, self.conv3 = net.conv1
        self.bn3 = net.bn1
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The four stages' outputs, at strides 4, 8, 8, 8."""
        x = self.relu(self.bn1(self.conv1(image_B3HW)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.maxpool(self.relu(self.bn3(self.conv3(x))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels
