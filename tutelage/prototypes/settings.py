"""Settings of prototypes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.settings import Settings

MEANS_KIND = "class means"
MIXTURES_KIND = "mixtures"
"""What files of tensors are called inside."""

Compat = Literal["corrected", "published"]


Beginning = Literal["published", "clusters"]


Precision = Literal["float64", "float32"]


class MixtureSettings(Settings):
    """How the mixture of one class is fitted. The defaults are BiSMAP's."""

    components: Annotated[int, Field(ge=1)] = 8
    """Gaussians of a class; a class with fewer rows has as many as rows."""

    start: Beginning = "published"
    """``published``: k-means from the best of some draws of rows, unit variances, equal weights. ``clusters``: the
    means, variances and weights of clusters from k-means++, which do not depend on the scale of the features."""

    tries: Annotated[int, Field(ge=1)] = 20
    """Published start: draws of rows, of which the one with the least summed distance is taken."""

    pilot_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows drawn for a fit of their own, from whose mixture the fit to all rows starts: it reads all rows far fewer
    times. At least as many as components; null: all rows from the first, as published."""

    movement: Annotated[float, Field(ge=0)] = 1e-3
    """k-means stops when no centre moves farther, in units of the range of all features of the class."""

    tolerance: float = 1e-3
    """Fitting stops when an iteration adds less to the mean log-likelihood, in nats."""

    iterations: Annotated[int, Field(ge=1)] = 101
    """Fitting stops after as many iterations at the latest."""

    variance_floor: Annotated[float, Field(gt=0)] = 1e-6
    """eps: added to every variance."""

    compat: Compat = "corrected"
    """``published`` adds eps to the number of rows of a component, too, and divides moments by the sum: its mean is
    drawn towards 0, which widens channels whose mean is large, and a component without rows goes to 0."""

    precision: Precision = "float64"
    """``float32`` reads rows of at most that precision in less time, in the iterations where it is safe."""

    restarts: Annotated[int, Field(ge=0)] = 3
    """How often another draw is tried where the likelihood is not finite."""
