import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from kinescan.data.groups import check_group
from kinescan.data.interval_layouts import INTERVAL_DATASETS, find_interval_layout
from kinescan.data.listing import DATASETS
from kinescan.data.loader import LoaderConfig
from kinescan.data.sampling import Views
from kinescan.data.transforms import AugmentConfig
from kinescan.data.video import Limits
from kinescan.errors import ConfigError
from kinescan.fields import MAX_COUNT, MAX_SEED, check_most, check_types
from kinescan.models.text_head import TextHead
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.files import read_toml
from kinescan.runtime.precision import AskedPrecision
from kinescan.runtime.recipe_files import find_recipe
from kinescan.settings import build_settings, closest, other_names, to_plain
from kinescan.training.accelerator import TrainConfig
from kinescan.training.optim import OptimConfig

ScoredCheckpoint = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, from which weights.

    Attributes:
        name: name in the zoo, or of a model of your own; `kinescan list` shows them.
        module: Python module that registers a model of your own; empty for none. `kinescan train` imports it for a
            recipe that you name, not for the recipe in a run's folder: there, and for all other verbs, --import does.
        weights: file, folder or hub name of pretrained image weights, or a saved kinescan model; empty for none.
        new_head: start with a new head on weights of a kinescan model that tells other classes apart; without it, such
            weights are refused.
        options: fields of the model's own config.
        text: start the classifier from the class names, read by CLIP's text encoder; off without templates.
    """

    name: str = "pks4_vit_b16"
    module: str = ""
    weights: str = ""
    new_head: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    text: TextHead = field(default_factory=TextHead)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the videos are.

    Attributes:
        train: a folder with one folder of videos per class, a csv of path,label, the folder of a published data set, or
            labels with a start and an end: a csv of path,start,end,label, or another layout of docs/data.md.
        test: the same for evaluation; empty takes the published test part, or else holds out a part of `train`.
        root: folder that paths in a csv are relative to, empty for the csv's own; or that of a published data set's
            videos, empty for `train`.
        reader: how `train` and `test` are laid out: "auto" tells a folder from a csv; published data sets are "ssv2",
            "kinetics400", "kinetics600", "kinetics700", "ucf101", "hmdb51" and "breakfast".
        split: which of the published divisions into training and test, from 1.
        overlaps: of labels with a start and an end: those of one video may overlap; without it, such rows are refused.
        group: what must not stand on both sides of a split, such as a person or a recording: "column NAME" of the csv,
            or a regular expression over the paths with the group in parentheses; empty splits by video.
        split_seed: of which videos are held out; whatever the run's `seed` is, they are the same. -1 takes the run's
            `seed`, as runs of earlier versions did: each seed then holds out others.
        held_out_ratio: fraction of each class held out for evaluation where there is no `test`.
        validation_ratio: fraction of the other training videos on which the best checkpoint, thresholds and the early
            stop are chosen; 0 chooses them on the held-out videos.
        folds: of cross-validation: the videos are divided into so many folds, by `group`; 0: no folds.
        fold: which of them is held out, from 1.
        kept_frames: for few videos: decode each once and keep so many evenly spaced, resized frames of it in memory,
            which training clips are sampled from; 0 decodes anew in every epoch. Of labels with a start
            and an end, any number above 0 keeps all frames at `preprocessing.frame_rate`.
        kept_gib: where the kept frames would take more memory than this, in GiB, every epoch decodes anew.
        event_ratio: of labels with a start and an end: fraction of the training windows that show an event, the others
            lie anywhere; with `train.carry_state`, what frames with an event weigh of all.
        windows_per_epoch: of labels with a start and an end: training windows in an epoch, so that a training takes as
            long for a few minutes of video as for hours; 0: as many as cover all videos once. With `train.carry_state`,
            an epoch continues where the one before it ended.
        clips_per_epoch: of videos with one label each: training clips in an epoch, at least. Of fewer videos, each is
            taken several times, with other frames and crops each time, so that a training of few videos has as many
            steps as one of some hundreds; 0: each video once.
        timeout_seconds: how long opening a video, and each read of it, may take; a second more for each 100 kB of it.
        max_pixels: width times height of the largest frame that is decoded.
        allow_short: use what can be decoded of cut or damaged videos, in training and evaluation; without it, they are
            left out and named.
    """

    train: str = ""
    test: str = ""
    root: str = ""
    reader: str = "auto"
    split: int = 1
    overlaps: bool = False
    group: str = ""
    split_seed: int = 0
    held_out_ratio: float = 0.2
    validation_ratio: float = 0.0
    folds: int = 0
    fold: int = 1
    kept_frames: int = 0
    kept_gib: float = 4.0
    event_ratio: float = 0.5
    windows_per_epoch: int = 0
    clips_per_epoch: int = 0
    timeout_seconds: float = Limits.timeout_seconds
    max_pixels: int = Limits.max_pixels
    allow_short: bool = False

    @property
    def limits(self) -> Limits:
        """What one video may take."""
        return Limits(timeout_seconds=self.timeout_seconds, max_pixels=self.max_pixels)

    def passes(self, num_videos: int) -> int:
        """How often each of so many training videos is taken in an epoch, by `clips_per_epoch`.

        Example:
            >>> DataConfig(clips_per_epoch=144).passes(60), DataConfig().passes(60)
            (3, 1)
        """
        return max(1, -(-self.clips_per_epoch // max(1, num_videos)))

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, split=10**6, split_seed=MAX_SEED, folds=1000, kept_frames=2**16, kept_gib=2**20)
        Limits(timeout_seconds=self.timeout_seconds, max_pixels=self.max_pixels)
        known = ["auto", *DATASETS, *INTERVAL_DATASETS]
        if self.reader not in known:
            raise ConfigError(f"unknown label reader {self.reader!r}. {closest(self.reader, known)}")
        if self.split < 1:
            raise ConfigError(f"split must be at least 1, got {self.split}.")
        for name in ("kept_frames", "kept_gib"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not 0 < self.event_ratio < 1:
            raise ConfigError(f"event_ratio must lie between 0 and 1, got {self.event_ratio}.")
        if not 0 < self.held_out_ratio < 1:
            raise ConfigError(f"held_out_ratio must lie between 0 and 1, got {self.held_out_ratio}.")
        if not 0 <= self.validation_ratio < 1:
            raise ConfigError(f"validation_ratio must lie between 0 and 1, got {self.validation_ratio}.")
        for name in ("windows_per_epoch", "clips_per_epoch"):
            if not 0 <= getattr(self, name) <= MAX_COUNT:
                raise ConfigError(f"{name} must lie in 0 to {MAX_COUNT}, got {getattr(self, name)}.")
        if self.split_seed < -1:
            raise ConfigError(f"split_seed must be 0 to {MAX_SEED}, or -1 for the run's seed, got {self.split_seed}.")
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"folds must be 0 (none) or at least 2, got {self.folds}.")
        if not 1 <= self.fold <= max(1, self.folds):
            raise ConfigError(f"fold must lie in [1, {max(1, self.folds)}], got {self.fold}.")
        if self.folds and self.test:
            raise ConfigError("folds hold out a part of `train` each. Leave data.test out, or data.folds.")
        check_group(self.group)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which views of a video are scored, written frames x clips x crops.

    Attributes:
        views: of the final report, such as "8x2x3"; empty for `preprocessing.num_frames` x 2 x 3.
        views_while_training: of the evaluations after epochs; empty for `preprocessing.num_frames` x 1 x 1.
        precision: that the final report computes in; "auto" is that of the training. Evaluations after epochs always
            run in that.
        checkpoint: that the final report scores: "best" of the evaluations after epochs, which is chosen on the
            validation videos (without `data.validation_ratio` on the held-out ones, which makes their score too high);
            or "last", which nothing chooses. A study takes "last" where there are no validation videos.
        grace_seconds: of labels with a start and an end: how long after its end an event may still be told. Thresholds
            are chosen with it, and the report counts with it; for events of a second or less.
    """

    views: str = ""
    views_while_training: str = ""
    precision: AskedPrecision = "auto"
    checkpoint: ScoredCheckpoint = "best"
    grace_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.grace_seconds < float("inf"):
            raise ConfigError(f"evaluation.grace_seconds must be 0 or more, got {self.grace_seconds}.")
        for views in (self.views, self.views_while_training):
            if views:
                Views.parse(views)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: what a recipe says, complete.

    Attributes:
        output: folder of the run; empty for the next free one under runs/.
        seed: of new weights, order and random sampling; which videos are held out depends on `data.split_seed`.
        model: what is trained.
        data: on which videos.
        preprocessing: how pixels become clips.
        augment: how training clips are varied.
        loader: batches and worker processes.
        optim: learning rates, schedule and loss.
        train: device, precision, checkpoints.
        evaluation: views.
    """

    output: str = ""
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must be 0 to {MAX_SEED}, got {self.seed}.")

    @property
    def task(self) -> Literal["clips", "intervals"]:
        """What the labels of `data.train` are of: whole clips, or intervals with a start and an end."""
        data = self.data
        return "intervals" if find_interval_layout(data.train, data.reader, data.root or None) else "clips"

    def views(self) -> Views:
        """Views of the final report."""
        return Views.parse(self.evaluation.views or f"{self.preprocessing.num_frames}x2x3")

    def views_while_training(self) -> Views:
        """Views of the evaluations after epochs."""
        return Views.parse(self.evaluation.views_while_training or f"{self.preprocessing.num_frames}x1x1")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a TOML recipe describes, with single settings replaced.

    `model = "name"` is short for `[model]` with `name`. Paths are relative to the folder that the program runs in.

    Args:
        path: the recipe, see `find_recipe`.
        overrides: "dotted.key=value" each; values are TOML, and bare words are taken as text.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown (the closest is named), or a value is wrong.
    """
    return build_run(read_toml(find_recipe(path)), overrides)


def build_run(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, settings: Mapping[str, Any] | None = None
) -> RunConfig:
    """The run that a mapping like a recipe's describes, with single settings replaced.

    Args:
        values: as a recipe's TOML gives them.
        overrides: "dotted.key=value" each; see `load_recipe`.
        settings: dotted key -> value, before the overrides; see `flat_settings`.

    Raises:
        ConfigError: as for `load_recipe`.

    Example:
        >>> build_run({"model": "pks4_vit_ti16"}, ["optim.lr=1e-3", "data.train=videos"]).optim.lr
        0.001
    """
    merged = _long_form(values)
    for dotted, value in (settings or {}).items():
        _put(merged, dotted.split("."), value)
    for override in overrides:
        _override(merged, override)
    merged = _long_form(merged)
    _refuse_unknown_keys(merged)
    return build_settings(RunConfig, merged)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The nested mapping that "dotted.key=value" texts describe.

    Raises:
        ConfigError: one has no "=", or looks like TOML and is none.

    Example:
        >>> parse_overrides(["optim.lr=1e-3", "model=vit_b16", "optim.betas=[0.9, 0.98]"])
        {'optim': {'lr': 0.001, 'betas': [0.9, 0.98]}, 'model': 'vit_b16'}
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _override(values, override)
    return values


def dump_recipe(config: RunConfig) -> str:
    """The run as TOML text, every setting written out; `load_recipe` reads it back to the same.

    Raises:
        ConfigError: a model option has a value that TOML cannot hold.
    """
    try:
        return tomli_w.dumps(to_plain(config))
    except TypeError as error:
        raise ConfigError(
            f"model.options cannot be written as TOML ({error}). Leave options out that are None."
        ) from None


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as dotted keys, whether they were written with points or as tables.

    Example:
        >>> flat_settings({"optim": {"lr": 0.1}, "model.options": {"scanner": False}, "model": "vit_b16"})
        {'optim.lr': 0.1, 'model.options.scanner': False, 'model': 'vit_b16'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flat_settings(value).items()}
        else:
            flat[key] = value
    return flat


def _long_form(values: Mapping[str, Any]) -> dict[str, Any]:
    copy = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    if isinstance(copy.get("model"), str):
        copy["model"] = {"name": copy["model"]}
    return copy


def _override(values: dict[str, Any], text: str) -> None:
    dotted, sign, value = text.partition("=")
    parts = [part.strip() for part in dotted.split(".")]
    if not sign or not all(parts):
        raise ConfigError(f"--set takes key=value, such as optim.lr=1e-3, got {text!r}.")
    _put(values, parts, _value(value.strip(), text))


def _put(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Replaces one setting, by the parts of its dotted key."""
    table = values
    for part in parts[:-1]:
        inner = table.get(part)
        table[part] = dict(inner) if isinstance(inner, Mapping) else {}
        table = table[part]
    if list(parts) == ["model"] and isinstance(value, str) and isinstance(values.get("model"), dict):
        values["model"]["name"] = value
    else:
        for other in other_names(parts[-1]):
            table.pop(other, None)
        table[parts[-1]] = value


def _value(text: str, override: str) -> Any:
    """`text` as TOML; what does not look like a list, table or quoted text is taken as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {override}: the value is not valid TOML: {error}.") from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _refuse_unknown_keys(values: Mapping[str, Any]) -> None:
    known = dict(_known_keys(RunConfig, ""))
    for dotted in _given_keys(values, known, ""):
        leaf = dotted.rsplit(".", 1)[-1]
        same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
        near = same_leaf or difflib.get_close_matches(dotted, known, n=1, cutoff=0.5)
        tables = sorted(key for key, cls in known.items() if dataclasses.is_dataclass(cls))
        hint = f"Did you mean {near[0]!r}?" if near else f"Tables of a recipe: {', '.join(tables)}."
        raise ConfigError(f"unknown key {dotted!r}. {hint}")


def setting_names() -> list[str]:
    """Every setting of a recipe, dotted; tables themselves are left out.

    Example:
        >>> "optim.epochs" in setting_names(), "optim" in setting_names()
        (True, False)
    """
    return [name for name, hint in _known_keys(RunConfig, "") if not dataclasses.is_dataclass(hint)]


def _known_keys(cls: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key under a settings class with its type."""
    for name, hint in typing.get_type_hints(cls).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        nested = next((option for option in options if dataclasses.is_dataclass(option)), None)
        yield f"{where}{name}", nested or hint
        if nested is not None:
            yield from _known_keys(nested, f"{where}{name}.")


def _given_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Iterator[str]:
    """Dotted keys that are not known; below a key that is not a table of the recipe, everything is allowed."""
    for name, value in values.items():
        dotted = f"{where}{name}"
        if dotted not in known:
            yield dotted
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(known[dotted]):
            yield from _given_keys(value, known, f"{dotted}.")
