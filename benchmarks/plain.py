"""The yardstick: a plain fp32 training loop with segmentation-models-pytorch, as its tutorials write it.

    python -m benchmarks.plain --width 64 --crop 192 --scale 0.5 1.5 --steps 600 --lr 4e-3 --seed 0

trains the student of `recipes/camvid/distil.yaml` with torchvision's v2 transforms in a DataLoader and scores the test
frames: its augmentation, batch, steps, optimizer and rates; nothing else is shared with tutelage but the list of files.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import tutelage.torchvision_operators  # noqa: F401  (before torchvision)

import segmentation_models_pytorch as smp  # isort: skip
import torch  # isort: skip
from PIL import Image  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.utils.data import DataLoader, RandomSampler  # isort: skip
from torch.utils.data import Dataset as TorchDataset  # isort: skip
from torchmetrics.classification import MulticlassJaccardIndex  # isort: skip
from torchvision import tv_tensors  # isort: skip
from torchvision.transforms import v2  # isort: skip

from benchmarks.common import street_data
from tutelage.data.dataset import Dataset
from tutelage.nets.weights import packaged

MEAN_STD = {"lite": ([0.5] * 3, [0.5] * 3), "other": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}


class ScaleJitter(nn.Module):
    """Resize image and mask by a random factor (torchvision has no transform that takes a range of factors)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        factor = float(torch.empty(()).uniform_(self.low, self.high))
        size = [round(side * factor) for side in image.shape[-2:]]
        return v2.functional.resize(image, size, antialias=True), v2.functional.resize(mask, size)


class Images(TorchDataset):
    """Image and mask files under torchvision's transforms."""

    def __init__(self, dataset: Dataset, transform: v2.Compose) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset.samples[index]
        assert sample.label is not None
        image = tv_tensors.Image(v2.functional.pil_to_tensor(Image.open(sample.image).convert("RGB")))
        mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(sample.label)))
        image, mask = self.transform(image, mask)
        return image, mask[0].long()


def transforms(crop: int, scale: tuple[float, float], mean: list[float], std: list[float], train: bool) -> v2.Compose:
    """The usual chain."""
    finish = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(mean, std)]
    if not train:
        return v2.Compose(finish)
    fill = {tv_tensors.Image: 114, tv_tensors.Mask: 255}
    return v2.Compose(
        [
            ScaleJitter(*scale),
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
            *finish,
        ]
    )


def make_net(encoder: str, width: int, classes: int) -> nn.Module:
    """DeepLabV3+ of segmentation-models-pytorch, its encoder with packaged ImageNet weights where there are any."""
    net: nn.Module = smp.DeepLabV3Plus(f"tu-{encoder}", encoder_weights=None, classes=classes, decoder_channels=width)
    if "lite" in encoder:
        weights = {f"model.{name}": value for name, value in packaged(encoder).items()}
        net.encoder.load_state_dict(weights, strict=False)
    return net


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--width", type=int, default=256, help="channels of the decoder")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--scale", type=float, nargs=2, default=(0.5, 2.0))
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--encoder-ratio", type=float, default=0.25)
    parser.add_argument("--threads", type=int, help="threads of torch (default: all cores)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not timed")
    parser.add_argument("--no-score", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    if given.threads:
        torch.set_num_threads(given.threads)
    data, _ = street_data()
    classes = len(data["train"].classes)
    mean, std = MEAN_STD["lite" if "lite" in given.encoder else "other"]
    net = make_net(given.encoder, given.width, classes)
    encoder = list(net.encoder.parameters())
    rest = [parameter for name, parameter in net.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": given.lr * given.encoder_ratio}, {"params": rest, "lr": given.lr}], weight_decay=1e-2
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, given.steps, power=0.9)
    images = Images(data["train"], transforms(given.crop, (given.scale[0], given.scale[1]), mean, std, train=True))
    sampler = RandomSampler(images, num_samples=given.steps * given.batch)
    loader = DataLoader(images, given.batch, sampler=sampler, num_workers=given.workers)
    net.train()
    started = time.perf_counter()
    for step, (image, mask) in enumerate(loader):
        if step == given.warm_up:
            started = time.perf_counter()
        loss = nn.functional.cross_entropy(net(image), mask, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    result = {"step_s": (time.perf_counter() - started) / (given.steps - given.warm_up), "steps": given.steps}
    if not given.no_score:
        result |= score(net, data["test"], mean, std, classes)
    print(json.dumps(result))


@torch.no_grad()
def score(net: nn.Module, dataset: Dataset, mean: list[float], std: list[float], classes: int) -> dict[str, float]:
    """mIoU of whole test images, one by one (odd sizes are padded to multiples of 32, as the library asks)."""
    net.eval()
    metric = MulticlassJaccardIndex(classes, ignore_index=255)
    loader = DataLoader(Images(dataset, transforms(0, (1.0, 1.0), mean, std, train=False)), batch_size=1, num_workers=2)
    started = time.perf_counter()
    for image, mask in loader:
        height, width = mask.shape[1:]
        padded = nn.functional.pad(image, (0, -width % 32, 0, -height % 32))
        metric.update(net(padded)[..., :height, :width].argmax(1), mask)
    return {"miou": float(metric.compute()), "score_s": time.perf_counter() - started}


if __name__ == "__main__":
    main()
