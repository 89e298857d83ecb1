"""TriKD's step with all views at once against one view after the other: peak memory of activations, processor time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.common import in_process, ratio_line
from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Batch, Geometries, View
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.contract import Carry, StepContext, TaskInfo
from tutelage.engine.meter import peak_memory
from tutelage.methods.settings.trikd import VIEWS, TriKDSettings
from tutelage.methods.trikd import STREAMS, TriKD
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings

CLASSES, ROUNDS = 19, 3
CPU = torch.device("cpu")
WAYS = ("joint", "view_wise")
NETS = {
    "equal": ("tf_efficientnet_lite0", "tf_efficientnet_lite0", "tf_efficientnet_lite0"),
    "published": ("tiny_vit_21m_512", "resnet101s", "deit_base_distilled_patch16_384"),
    "small": ("mobilenetv3_small_050", "mobilenetv3_small_050", "mobilenetv3_small_050"),
}


def made(kind: str, way: str) -> TriKD:
    """The method with three nets."""
    decoder = "dual_frequency" if kind == "published" else "deeplabv3plus"
    settings = [NetSettings.model_validate({"encoder": name, "decoder": decoder}) for name in NETS[kind]]
    nets = {view: build(settings[number], CLASSES, seed=number) for number, view in enumerate(VIEWS)}
    torch.manual_seed(0)  # the projections
    method = TriKD(nets, TriKDSettings(view_wise=way == "view_wise"), TaskInfo(CLASSES))
    return method.to(memory_format=torch.channels_last).train()


def batches(size: int, count: int) -> dict[str, Batch]:
    """A labelled and an unlabelled batch of noise."""
    result = {}
    for number, stream in enumerate(STREAMS):
        draw = torch.Generator().manual_seed(number)
        image = torch.rand(count, 3, size, size, generator=draw)
        label = torch.randint(CLASSES, (count, size, size), generator=draw)
        valid = torch.ones(count, size, size, dtype=torch.bool)
        geometry = Geometries.stack([Geometry.crop((size, size), (size, size), (0, 0), (size, size), False)] * count)
        view = View(image, valid, {"label": label}, geometry)
        result[stream] = Batch({"weak": view}, torch.arange(count), tuple(f"{stream}:{n}" for n in range(count)))
    return result


class Saved:
    """Bytes that graphs hold for their backward, each storage once, without parameters; now and at most."""

    def __init__(self, method: TriKD) -> None:
        self.own = {each.untyped_storage()._cdata for each in (*method.parameters(), *method.buffers())}
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        return _Held(self, tensor.detach())  # with its graph it would keep itself alive

    def count(self, storage: torch.UntypedStorage, change: int) -> None:
        name = storage._cdata
        if name in self.own:
            return
        before = self.holders.get(name, 0)
        self.holders[name] = before + change
        if before == 0 or before + change == 0:
            self.now += change * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Held:
    """One saved tensor, for as long as its graph lives."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        saved.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.saved.count(self.tensor.untyped_storage(), -1)


def losses(method: TriKD, given: dict[str, Batch]) -> Iterator[Tensor]:
    """The loss of each pass of a step."""
    totals = {name: value.float() for name, value in method.counts(given).items()}
    carry = Carry()
    for each in method.passes(0):
        context = StepContext(0, 100, 0, CPU, each.name, carry=carry, totals=totals)
        yield torch.stack(list(method(given, each.name, context).values())).sum()


def step(method: TriKD, given: dict[str, Batch]) -> float:
    """Forwards and backwards of one step; the sum of its losses."""
    total = 0.0
    for loss in losses(method, given):
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def one(kind: str, way: str, size: int, count: int) -> dict[str, Any]:
    """Processor time of steps after one warm-up; this process's peak memory in MiB beyond nets and gradients."""
    keep_freed_memory()  # as the engine does
    torch.set_num_threads(1)
    method, given = made(kind, way), batches(size, count)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before, times, loss = peak_memory(CPU), [], 0.0
    for number in range(1 + ROUNDS):
        start = time.process_time()
        loss = step(method, given)
        if number:
            times.append(time.process_time() - start)
    return {"times": times, "mib": peak_memory(CPU) - before, "loss": loss}


def saved(kind: str, way: str, size: int, count: int) -> float:
    """MiB that the graphs of a step hold at most, from shapes alone."""
    mode = FakeTensorMode()
    method = made(kind, way)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a tensor without data is put in, not copied in
    method._apply(mode.from_tensor)
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    held = Saved(method)
    with mode:
        given = batches(size, count)
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda each: each.tensor):
            for loss in losses(method, given):
                del loss
    return held.peak / 2**20


def main(small: bool = False) -> None:
    """Print both tables."""
    print("\n## TriKD's step, all views at once and one after the other\n")
    print("| what | one by one | at once | ratio | range | memory, one by one | at once | share |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    sizes = ((32, 2),) if small else ((256, 2), (256, 2))
    for kind, (size, count) in zip(("small",) if small else ("equal", "published"), sizes, strict=False):
        found = {way: in_process("benchmarks.trikd", kind, way, str(size), str(count)) for way in WAYS}
        joint, parted = (found[way] for way in WAYS)
        assert abs(joint["loss"] - parted["loss"]) < 1e-3 * joint["loss"]
        line = ratio_line(f"{kind} nets, {count} + {count} crops of {size}", parted["times"], joint["times"])
        share = parted["mib"] / joint["mib"]
        print(f"{line} {parted['mib']:.0f} MiB | {joint['mib']:.0f} MiB | {share:.2f} |", flush=True)
    print("\n| kept for the backward, from shapes alone | one by one | at once | share |\n| --- | --- | --- | --- |")
    for kind, size, count in (("small", 32, 2),) if small else (("equal", 512, 2), ("published", 512, 2)):
        joint_mib, parted_mib = (saved(kind, way, size, count) for way in WAYS)
        what = f"{kind} nets, {count} + {count} crops of {size}"
        print(f"| {what} | {parted_mib:.0f} MiB | {joint_mib:.0f} MiB | {parted_mib / joint_mib:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(NETS))
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("size", type=int)
    parser.add_argument("count", type=int)
    parsed = parser.parse_args()
    print(json.dumps(one(parsed.kind, parsed.way, parsed.size, parsed.count)))
