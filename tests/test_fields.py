"""Every field of every settings class, with values that no field should take."""

import dataclasses
import math
import typing
from functools import partial
from typing import Any

import numpy as np
import pytest

from kinescan.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, build_run
from kinescan.data.loader import LoaderConfig
from kinescan.data.sampling import Views
from kinescan.data.synthetic.appearance import AppearanceConfig
from kinescan.data.synthetic.motion import MotionConfig
from kinescan.data.transforms import AugmentConfig
from kinescan.errors import ConfigError
from kinescan.fields import MAX_SEED, fits
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.registry import MODELS
from kinescan.preprocessing import Preprocessing
from kinescan.settings import build_settings, to_plain
from kinescan.training.accelerator import TrainConfig
from kinescan.training.optim import OptimConfig

CLASSES = [
    *(RunConfig, ModelConfig, DataConfig, EvaluationConfig, Preprocessing, AugmentConfig, LoaderConfig),
    *(OptimConfig, TrainConfig, Views, MotionConfig, AppearanceConfig),
    *sorted({architecture.model.config_class for architecture in MODELS.values()}, key=lambda cls: cls.__name__),
]
HOSTILE: list[Any] = [
    *(True, None, "", "text", "a\0b", b"bytes", 0, -1, 1, 0.0, -0.5, 0.5, 1.5, 1e308, -1e308, 5e-324),
    *(math.inf, -math.inf, math.nan, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**5000, "1" * 10**6),
    *([], {}, (), [1], [None] * 3, [math.nan] * 2, [-1.0, math.inf], [1e308] * 3, ["a\0"], {"a": math.inf}, object()),
]
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_field_takes_what_fits_and_refuses_all_else_by_name(cls: Any, name: str) -> None:
    hint = typing.get_type_hints(cls)[name]
    for value in HOSTILE:
        for build in (partial(cls, **{name: value}), partial(build_settings, cls, {name: value}, where="table")):
            built = problem = None
            try:
                built = build()
            except ConfigError as error:
                problem = str(error)
            if problem is not None:
                assert len(problem) < 1000
                continue
            assert fits(getattr(built, name), hint), value
            assert build_settings(cls, to_plain(built)) == built or isinstance(value, list | tuple)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed.*0.*4294967295.*-1"),
        ("seed=4294967296", "seed.*0.*4294967295"),
        ("seed=true", "seed"),
        ("optim.eps=inf", "optim.eps"),
        ("optim.warmup_epochs=inf", "optim.warmup_epochs"),
        ("optim.warmup_epochs=nan", "optim.warmup_epochs"),
        ("optim.lr=1e308", "optim.lr.*1000"),
        ("optim.epochs=99999999999", "optim.epochs"),
        ("optim.lr_scales={a=inf}", "optim.lr_scales"),
        ("loader.batch_size=9999999999", "loader.batch_size"),
        ("loader.num_workers=100000", "loader.num_workers.*1024"),
        ("data.kept_gib=nan", "data.kept_gib"),
        ("data.kept_gib=-1", "data.kept_gib must be 0 or more"),
        ('data.train="a\\u0000b"', "data.train"),
        ("preprocessing.std=[inf, 1.0, 1.0]", "preprocessing.std.*3"),
        ("preprocessing.size=20000", "preprocessing.size must be 1 to 16384"),
        ("preprocessing.num_frames=60000", "preprocessing.*pixels"),
        ("augment.mixup_alpha=1e-300", "augment.mixup_alpha must be 0, or lie"),
        ("augment.crop_aspect=[1e-300, 1.0]", "augment.crop_aspect"),
        ("evaluation.views=99999999999999999999x1x1", "views"),
        ("train.checkpoint_minutes=inf", "train.checkpoint_minutes"),
        ("train.log_every=" + "9" * 5000, "train"),
    ],
)
def test_recipes_name_the_key_of_a_value_out_of_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run({}, [override])


def test_numbers_of_numpy_and_lists_for_tuples_fit() -> None:
    assert Preprocessing(num_frames=np.int64(4), mean=[0.5, 0.5, 0.5]).num_frames == 4  # type: ignore[arg-type]
    assert OptimConfig(lr=np.float64(1e-3), epochs=np.int32(3)).epochs == 3  # type: ignore[arg-type]
    assert RunConfig(seed=MAX_SEED).seed == MAX_SEED


def test_sizes_without_end_are_refused_before_memory_is_taken() -> None:
    for sizes in ({"depth": 10**9}, {"width": 2**40, "heads": 1}, {"num_classes": 10**9}, {"mlp_dim": 2**60}):
        with pytest.raises(ConfigError, match="most"):
            PKS4Config(**sizes)
