"""What a method declares of its streams, and what a recipe makes of it."""

from __future__ import annotations

from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.engine.settings import StreamSpec

STRONG = ViewSettings(colour=ColourSettings(brightness=0.5))
GREY = ViewSettings(colour=ColourSettings(grey=1.0))


def test_a_view_has_the_recipes_settings_or_the_methods_or_none() -> None:
    spec = StreamSpec(
        labels=False, views=("weak", "strong", "other"), optional=("masked",), defaults={"strong": STRONG}
    )
    assert spec.shown({}) == {"weak": ViewSettings(), "strong": STRONG, "other": ViewSettings()}
    given = {"strong": GREY, "weak": STRONG}
    assert spec.shown(given) == {"weak": STRONG, "strong": GREY, "other": ViewSettings()}


def test_an_optional_view_is_made_where_the_recipe_gives_settings_for_it() -> None:
    spec = StreamSpec(labels=False, views=("weak",), optional=("masked", "full"), defaults={"full": STRONG})
    assert list(spec.shown({})) == ["weak"]
    assert spec.shown({"full": GREY}) == {"weak": ViewSettings(), "full": GREY}
    assert spec.known == ("weak", "masked", "full")
