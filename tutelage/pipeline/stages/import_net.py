"""The `import` stage: copies a net file."""

from __future__ import annotations

from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import check_classes, load_segmentor, read_metadata
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.import_net import ImportStage
from tutelage.runs.atomic import write_bytes


class ImportRunner(StageRunner[ImportStage]):
    """Copies the file, so that later changes do not affect the artefact."""

    def preflight(self) -> None:
        try:
            metadata = read_metadata(self.builder.base / self.stage.file)
            check_classes(metadata, self.builder.classes.names, "this recipe's task")
        except TutelageError as error:
            raise TutelageError(error.code, f"stage {self.name!r}: {error.message}", error.remedy) from error

    def make(self, work: Workplace) -> None:
        path, net = self.builder.base / self.stage.file, self.artefact.net("student")
        _, metadata = load_segmentor(path)
        check_classes(metadata, self.builder.classes.names, "this recipe's task")
        if collectives.rank() == 0:
            write_bytes(net, path.read_bytes())
            self.artefact.finish("import", [net], {"nets": ["student"]})

    def net_settings(self, net: str) -> NetSettings:
        return read_metadata(self.builder.base / self.stage.file).net
