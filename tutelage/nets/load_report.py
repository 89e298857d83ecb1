"""Report on weights loaded into a net."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """Which of a net's tensors a source held. Names are the net's, ``unexpected`` ones the source's."""

    source: str
    prefix: str = ""
    """Prefix of the encoder's names in the source."""
    fraction: float = 0.0
    """Fraction of the encoder's parameters that were found, by number of values, 0 to 1."""
    encoder_tensors: int = 0
    """Number of tensors of the encoder, running statistics included."""
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    """Tensors of another shape in the source, with both shapes."""
    resampled: list[str] = field(default_factory=list)
    """Patch and position embeddings that were resampled to the net's patch and image size."""
    remade: list[str] = field(default_factory=list)
    """Classifiers that keep their random weights because the source has another number of classes."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        in_encoder = sum(name.startswith("encoder.") for name in self.matched)
        lines = [
            f"{self.source}: {self.fraction:.1%} of the encoder's parameters, {in_encoder} of {self.encoder_tensors} "
            f"encoder tensors, {len(self.matched) - in_encoder} others"
            + (f", under the prefix {self.prefix!r}" if self.prefix else "")
        ]
        for title in ("remade", "resampled", "missing", "mismatched", "unexpected"):
            names: list[str] = getattr(self, title)
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                words = "not needed" if title == "unexpected" else title
                lines.append(f"  {words} {len(names)}: {', '.join(names[:6])}{more}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])
