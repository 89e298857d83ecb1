"""The base of everything a user may set.

Each room defines the settings of its own things next to their code; :mod:`tutelage.recipe` only puts them
together. So a default and its meaning stand in one place, and the schema, the reference manual and the error
messages are all read off these classes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, typed settings: an unknown key is an error, values are checked when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
