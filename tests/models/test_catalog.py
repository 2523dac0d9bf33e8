from kinescan.models.catalog import CATALOG, TUNED
from kinescan.models.registry import MODELS, TUNERS


def test_every_model_of_the_zoo_is_in_the_catalog_with_its_settings() -> None:
    assert {name: dict(found.settings) for name, found in MODELS.items()} == {
        name: dict(settings) for name, settings in CATALOG.items()
    }
    assert set(TUNED) == set(TUNERS)
