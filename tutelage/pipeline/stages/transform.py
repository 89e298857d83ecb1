"""The `transform` stage: copies images in the style of others."""

from __future__ import annotations

from tutelage.annotate.stylised import stylise_dataset
from tutelage.data.copies import CopyFolder, with_copies
from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.transform import TransformStage


class TransformRunner(StageRunner[TransformStage]):
    """Writes a copy of every image in the style of an image of the target; existing copies are kept."""

    def make(self, work: Workplace) -> None:
        source = self.builder.dataset(self.stage.data).require_images(self.stage.data)
        target = self.builder.dataset(self.stage.target).require_images(self.stage.target)
        with work.display.bar("transform", len(source)) as progress:
            files, left_out = stylise_dataset(
                source,
                target.without_labels(),
                CopyFolder(self.artefact.folder).root,
                self.stage.style,
                seed=self.seed,
                device=work.device,
                on_unreadable=self.builder.recipe.run.on_unreadable,
                progress=progress,
            )
        work.display.left_out("images", left_out)
        collectives.barrier()
        if collectives.rank() == 0:
            facts = {"images": len(source) - len(left_out), "unreadable": left_out}
            self.artefact.finish("transform", files, facts)

    def dataset(self, stand_ins: bool = False) -> Dataset:
        originals = self.builder.dataset(self.stage.data, stand_ins)
        if stand_ins and self.artefact.manifest() is None:
            return originals
        return with_copies(originals, self.artefact.folder)
