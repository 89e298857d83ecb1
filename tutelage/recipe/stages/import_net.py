"""The `import` stage: a trained net from a file, such as a published teacher."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.recipe.base import StageSettings
from tutelage.settings import Ref


class ImportStage(StageSettings):
    """Import a trained net from a file, such as a published teacher."""

    makes: ClassVar[str] = "nets"

    kind: Literal["import"] = "import"
    file: Annotated[str, Field(pattern=r"\.safetensors$"), Ref("file")]
    """A net file of tutelage, relative to the recipe (`import-checkpoint` converts published checkpoints)."""
