"""The settings of the discriminator have the names and defaults of `prism.discriminator`."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from verl_prism.config import Discriminator
from verl_prism.discriminator import LossSettings, StepSettings

CONFIG = Path(__file__).parents[2] / "trainer_configs" / "prism.yaml"
FIELDS = [*fields(LossSettings), *(each for each in fields(StepSettings) if each.name != "loss")]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_field_has_the_name_and_default_of_the_config(field):
    assert field.name in Discriminator.model_fields
    default = yaml.safe_load(CONFIG.read_text())["prism"]["discriminator"][field.name]
    if not str(default).startswith("${"):
        assert field.default == default
    else:
        assert field.default is MISSING


def test_settings_are_picked_from_a_mapping():
    section = {"micro_batch_tokens": 7, "margin": 0.5, "max_nonfinite": 2, "lr": 1e-6}
    settings = StepSettings.from_mapping(section)
    expected = StepSettings(7, LossSettings(margin=0.5), max_nonfinite=2)
    assert settings == expected
