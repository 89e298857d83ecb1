"""The `fit` stage: class means, mixtures or pixel weights from a net's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.annotate.fits import FitRun
from tutelage.engine import collectives
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.fit import FitStage
from tutelage.runs.atomic import write_json


class FitRunner(StageRunner[FitStage]):
    """Fits, resuming after an interruption, and writes tensors and facts."""

    def make(self, work: Workplace) -> None:
        stage, builder, artefact = self.stage, self.builder, self.artefact
        dataset = builder.dataset(stage.data).require_images(stage.data)
        if not stage.what.opens_masks():
            dataset = dataset.without_labels()
        target = None
        if stage.target is not None:
            target = builder.dataset(stage.target).require_images(stage.target).without_labels()
        net = self._net().to(work.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        title, images = f"fit {stage.what.kind}", stage.what.images(dataset, target)
        with work.display.bar(title, images) as progress, net.inferring(stage.protocol.precision):
            run = FitRun(
                net=net,
                dataset=dataset,
                target=target,
                entropies=None if stage.entropies is None else builder.fitted(stage.entropies),
                path=artefact.fitted,
                parts=artefact.parts,
                weights=artefact.folder,
                device=work.device,
                protocol=stage.protocol,
                seed=self.seed,
                on_unreadable=builder.recipe.run.on_unreadable,
                progress=progress,
            )
            files, facts = stage.what.run(run)
        work.display.left_out("images", facts.get("unreadable", []))
        work.display.left_out("images of the target", facts.get("unreadable_target", []))
        if facts.get("without_samples"):
            work.display.say(f"  not fitted (too few pixels): {', '.join(facts['without_samples'])}")
        collectives.barrier()
        if collectives.rank() == 0:
            write_json(artefact.fit_facts, facts)
            summary = {"what": stage.what.kind, "images": facts["images"]}
            artefact.finish("fit", [*files, artefact.fit_facts], summary)
            artefact.clear_parts()

    def _net(self) -> Segmentor:
        if self.stage.net is not None:
            return self.builder.trained_net(self.stage.net)
        assert self.stage.encoder is not None
        if self.builder.recipe.nets[self.stage.encoder].weights is None:
            text = f"warning: net {self.stage.encoder!r} has random weights: its features carry little information"
            self.builder.say(text)
        return self.builder.new_net(self.stage.encoder, self.seed)

    def stand_in_fit(self) -> Mapping[str, Tensor]:
        assert self.stage.net is not None
        channels = self.builder.stand_in_net(self.stage.net).embedding_channels
        return self.stage.what.stand_in(len(self.builder.classes), channels)

    def file_kind(self) -> str:
        return self.stage.what.file_kind
