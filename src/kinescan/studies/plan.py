"""Every run of a study, resolved, built and named before the first one starts."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kinescan.config import RunConfig, build_run, flat_settings
from kinescan.data.provenance import fingerprint, record_videos
from kinescan.data.synthetic.writing import META
from kinescan.errors import ConfigError, KinescanError
from kinescan.profiling.environment import describe_environment
from kinescan.runs.datasets import evaluated_on, read_videos
from kinescan.runs.make_data import check_made
from kinescan.runs.stills import make_still_model
from kinescan.runs.train import try_out
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object, read_toml
from kinescan.runtime.recipe_files import find_recipe
from kinescan.runtime.run_folder import RUNS
from kinescan.settings import to_plain
from kinescan.studies.study import RUNS_SEED, DataEntry, Preparation, Row, Study
from kinescan.training.accelerator import TrainConfig

NEUTRAL = (
    *("output", "data.train", "data.test", "data.root", "data.timeout_seconds", "data.max_pixels"),
    *("loader.num_workers", "loader.prefetch_batches", "loader.start_method", "train.log_every"),
    *(
        "train.checkpoint_minutes",
        "train.keep_checkpoints",
        "train.trackers",
        "train.tracker_project",
        "train.tracker_run",
    ),
    "model.options.activation_checkpointing",
)
"""Settings that no result depends on; which videos there are is told by their content, wherever they lie."""
SCORED = "evaluation.checkpoint"
"""The setting that says which checkpoint is scored."""
LATER: Mapping[str, Any] = {
    "evaluation.grace_seconds": 0.0,
    "augment.invert_rate": 0.0,
    "train.sharding": "none",
    "data.windows_per_epoch": 0,
    "data.clips_per_epoch": 0,
    "preprocessing.whole_frame": False,
    SCORED: "best",
}
"""Settings that were added after keys had been written, each with the value that stands for what earlier versions did.

At that value a setting is not a part of the key, so that runs of earlier versions keep their keys.
"""
_LETTERS = 40
_MOST_NAMED = 2


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A preparation with one seed.

    Attributes:
        name: of the preparation.
        kind: see `Preparation`.
        seed: that its run is trained with.
        config: of its run.
        stills_per_epoch: of stills.
        preparation: whose weights it starts from; None for none.
        key: of all that its weights depend on, but for the code.
        folder: of its run.
    """

    name: str
    kind: str
    seed: int
    config: RunConfig
    stills_per_epoch: int
    preparation: "PreparedJob | None"
    key: str
    folder: Path

    def chain(self) -> "tuple[PreparedJob, ...]":
        """What has to be trained before it, in order, and itself."""
        return (*(self.preparation.chain() if self.preparation is not None else ()), self)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study.

    Attributes:
        row: its name.
        data: its name; empty where the study names none.
        seed: of the run.
        config: of the run; a preparation's weights are put into it when they are there.
        preparation: whose weights it starts from; None for none.
        data_digest: of the videos and their division: ids, labels, content; empty where the data is still to be made.
        num_training: videos to train on.
        key: of all that the result depends on, but for the code.
        folder: of the run.
    """

    row: str
    data: str
    seed: int
    config: RunConfig
    preparation: PreparedJob | None
    data_digest: str
    num_training: int
    key: str
    folder: Path

    @property
    def title(self) -> str:
        """For log lines and messages."""
        return _title(self.row, self.data, self.seed)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study will do.

    Attributes:
        study: with its recipes written out, so that it does not depend on other files.
        output: its folder.
        store: where runs, preparations and generated data lie: the same folder, or the one that studies share.
        code: that runs: the commit, or the version outside of a checkout.
        jobs: in the order in which they run: all rows with the first seed come first.
    """

    study: Study
    output: Path
    store: Path
    code: str
    jobs: tuple[Job, ...]

    @property
    def preparations(self) -> tuple[PreparedJob, ...]:
        """What has to be trained first, each once."""
        needed = (each for job in self.jobs if job.preparation is not None for each in job.preparation.chain())
        return tuple({each.folder: each for each in needed}.values())


def plan_study(study: Study, output: str | Path | None = None, *, code: str | None = None) -> StudyPlan:
    """All runs of a study; every row is resolved, its videos are listed and its model is built. Nothing is written.

    Where data still has to be made, models are built for two classes, and the videos are looked at when they are there.

    Args:
        study: what to run.
        output: folder of everything; by default runs/NAME.
        code: what the results are told apart by, besides settings and data; by default the commit.

    Raises:
        ConfigError: rows cannot be built (each is named with what is wrong), two rows or two data entries are alike, or
            there are too few videos.
    """
    return _Planner(written_out(study), Path(output or Path(RUNS) / slug(study.name)), code or code_version()).plan()


def _told_once(problems: Mapping[str, str]) -> Iterator[str]:
    """Each problem once, after the names of the rows that have it."""
    for reason in dict.fromkeys(problems.values()):
        alike = [what for what, problem in problems.items() if problem == reason]
        more = f" and {len(alike) - _MOST_NAMED} more" if len(alike) > _MOST_NAMED else ""
        yield f"{', '.join(alike[:_MOST_NAMED])}{more}: {reason}"


def _title(row: str, data: str, seed: int) -> str:
    return " / ".join(part for part in (row, data, f"seed {seed}") if part)


def slug(name: str) -> str:
    """A name as part of a path.

    Example:
        >>> slug("PKS4, no scanner")
        'pks4-no-scanner'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LETTERS] or "x"


@cache
def code_version() -> str:
    """The commit of this checkout, with a digest of the code where that was changed; else the version of kinescan."""
    here = describe_environment()
    if here.commit is None:
        return f"kinescan {here.kinescan}"
    if not here.commit.endswith("-dirty"):
        return here.commit
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".toml"))
    return f"{here.commit}-{_digest([path.read_bytes().hex() for path in sources])}"


def made_folder(store: Path, entry: DataEntry | Preparation) -> Path:
    """The folder of generated data (`make` of an entry); each combination of settings has its own."""
    return store / "data" / f"{slug(entry.name)}-{_digest(entry.make)}"


def is_made(folder: Path) -> bool:
    """Whether generated data is there, to the last file."""
    try:
        return read_json_object(folder / META).get("complete") is True
    except ConfigError:
        return False


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def written_out(study: Study) -> Study:
    """The study with each recipe that is named by a file read as a table.

    Raises:
        ConfigError: a recipe is missing or not TOML; says whose.
    """

    def table(recipe: str | dict[str, Any], whose: str) -> str | dict[str, Any]:
        if not isinstance(recipe, str) or not recipe:
            return recipe
        try:
            return read_toml(find_recipe(recipe))
        except ConfigError as error:
            raise ConfigError(f"{whose}: {error}") from None

    return replace(
        study,
        recipe=table(study.recipe, "the study's recipe"),
        rows=tuple(replace(row, recipe=table(row.recipe, f"row {row.name!r}")) for row in study.rows),
        preparations=tuple(
            replace(entry, recipe=table(entry.recipe, f"preparation {entry.name!r}")) for entry in study.preparations
        ),
    )


class _Planner:
    """Resolves the runs of a study, and keeps what several of them share."""

    def __init__(self, study: Study, output: Path, code: str) -> None:
        self._study, self._output, self._code = study, output, code
        self._store = Path(study.shared) if study.shared else output
        self._data: tuple[DataEntry | None, ...] = study.data_parts or (None,)
        self._digests: dict[str, tuple[str, int, tuple[str, ...]]] = {}
        self._built: set[str] = set()
        self._problems: dict[str, str] = {}
        self._wrong_rows: set[str] = set()

    def plan(self) -> StudyPlan:
        """All runs of the study.

        Raises:
            ConfigError: some cannot be built; every reason is in the message.
        """
        seeds, study = self._study.seeds, self._study
        self._check_made()
        jobs = [
            job
            for seed in seeds
            for entry in self._data
            for row in study.rows
            if (job := self._tried(row, entry, seed)) is not None
        ]
        if self._problems:
            told = "; ".join(_told_once(self._problems))
            number = len(self._wrong_rows)
            counted = "a part" if not number else "1 row" if number == 1 else f"{number} rows"
            raise ConfigError(f"{counted} of the study cannot be built, so nothing was run. {told}")
        self._refuse_alike(jobs)
        return StudyPlan(study=study, output=self._output, store=self._store, code=self._code, jobs=tuple(jobs))

    def _check_made(self) -> None:
        """Collects what is wrong with the settings of data that is to be generated."""
        used = {preparation.name for row in self._study.rows for preparation in self._study.chain_of(row)}
        makers: list[DataEntry | Preparation] = [*self._study.data]
        makers += [entry for entry in self._study.preparations if entry.name in used]
        for entry in makers:
            try:
                if entry.make:
                    check_made(entry.make["kind"], {key: value for key, value in entry.make.items() if key != "kind"})
            except ConfigError as error:
                what = "data" if isinstance(entry, DataEntry) else "preparation"
                self._problems[f"{what} {entry.name!r}"] = str(error)

    def _tried(self, row: Row, entry: DataEntry | None, seed: int) -> Job | None:
        """The run; None where it cannot be built, whose reason is then among `_problems`."""
        what = f"row {row.name!r}" + (f" on {entry.name!r}" if entry is not None else "")
        if what in self._problems:
            return None
        try:
            return self._job(row, entry, seed)
        except KinescanError as error:
            self._problems[what] = str(error)
            self._wrong_rows.add(what)
            return None

    def _job(self, row: Row, entry: DataEntry | None, seed: int) -> Job:
        """One run: its settings resolved, its videos listed, its model built once, its key and folder."""
        settings = self._settings(row, entry)
        preparation = self._study.preparation_of(row)
        prepared = None
        if preparation is not None:
            settings = _for_weights(settings, preparation)
            prepared = self._prepared(preparation, seed)
        recipe = row.recipe or self._study.recipe
        config = _scored_on_unseen(_resolved(recipe, settings, seed), recipe, settings)
        config = replace(config, train=self._tracked(config.train, row, entry, seed))
        digest, count, classes = self._videos(config, entry)
        self._try_out(config, classes, of_intervals=_of_intervals(entry, config), with_weights=prepared is None)
        key = _digest([_plain(config), digest, None if prepared is None else prepared.key])
        folder = self._runs_of(row, entry) / f"seed-{seed}-{_digest([key, self._code])}"
        return Job(
            row=row.name,
            data="" if entry is None else entry.name,
            seed=seed,
            config=config,
            preparation=prepared,
            data_digest=digest,
            num_training=count,
            key=key,
            folder=folder,
        )

    def _runs_of(self, row: Row, entry: DataEntry | None) -> Path:
        """The folder of a row's runs on some data; for what several studies share, it does not depend on names."""
        names = () if self._study.shared else (row.name, *([] if entry is None else [entry.name]))
        return self._store.joinpath("runs", *map(slug, names))

    def _settings(self, row: Row, entry: DataEntry | None) -> dict[str, Any]:
        """What replaces the recipe's settings."""
        own = flat_settings(self._study.settings)
        if entry is not None:
            own |= flat_settings(entry.settings) | self._made_paths(entry)
        return own | flat_settings(row.settings)

    def _tracked(self, train: TrainConfig, row: Row, entry: DataEntry | None, seed: int) -> TrainConfig:
        """Trackers gather the runs under the study's name, unless they are told otherwise."""
        run = train.tracker_run or _title(row.name, "" if entry is None else entry.name, seed)
        of_study = train.tracker_project == TrainConfig.tracker_project
        return replace(train, tracker_run=run, tracker_project=self._study.name if of_study else train.tracker_project)

    def _made_paths(self, entry: DataEntry | Preparation) -> dict[str, str]:
        if not entry.make:
            return {}
        folder, end = made_folder(self._store, entry), ".csv" if entry.make["kind"] == "events" else ""
        return {"data.train": str(folder / f"train{end}"), "data.test": str(folder / f"test{end}")}

    def _prepared(self, preparation: Preparation, seed: int) -> PreparedJob:
        """The preparation for a run of some seed, with what it starts from itself."""
        before = self._study.preparation(preparation.prepare)
        earlier = None if before is None else self._prepared(before, seed)
        seed = seed if preparation.seed == RUNS_SEED else preparation.seed
        try:
            settings = flat_settings(preparation.settings) | self._made_paths(preparation)
            settings = settings if before is None else _for_weights(settings, before)
            config = _resolved(preparation.recipe, settings, seed)
            digest = ""
            if preparation.kind == "train":
                digest, _, classes = self._videos(config, preparation)
                of_intervals = _of_intervals(preparation, config)
                self._try_out(config, classes, of_intervals=of_intervals, with_weights=earlier is None)
            else:
                make_still_model(config)
        except KinescanError as error:
            raise ConfigError(f"preparation {preparation.name!r}: {error}") from None
        stills = preparation.stills_per_epoch if preparation.kind == "stills" else 0
        key = _digest([preparation.kind, stills, _plain(config), digest, *([] if earlier is None else [earlier.key])])
        folder = self._store / "prepared" / slug(preparation.name) / f"seed-{seed}-{_digest([key, self._code])}"
        return PreparedJob(
            name=preparation.name,
            kind=preparation.kind,
            seed=seed,
            config=config,
            stills_per_epoch=stills,
            preparation=earlier,
            key=key,
            folder=folder,
        )

    def _videos(self, config: RunConfig, entry: DataEntry | Preparation | None) -> tuple[str, int, tuple[str, ...]]:
        """Digest of the videos and their division, how many are trained on, and the classes; each data is read once."""
        if entry is not None and entry.make and not is_made(made_folder(self._store, entry)):
            return "", 0, ()
        same = to_json([to_plain(config.data), config.seed if config.data.split_seed < 0 else None])
        if same not in self._digests:
            division = read_videos(config, announced=False)
            parts = {"training": division.training, "validation": division.validation, "held_out": division.held_out}
            videos = record_videos(
                division.training,
                division.held_out,
                division.classes,
                origin=evaluated_on(config),
                validation=division.validation,
            )
            recorded = (videos.train, videos.validation, videos.held_out)
            told = [[video.to_json() | {"path": ""} for video in part] for part in recorded]
            digest = hashlib.sha256(to_json([list(parts), told, list(division.classes)]).encode()).hexdigest()[:16]
            self._digests[same] = (digest, len(division.training), division.classes)
        return self._digests[same]

    def _try_out(
        self, config: RunConfig, classes: tuple[str, ...], *, of_intervals: bool, with_weights: bool = True
    ) -> None:
        """Builds the model and groups its parameters, once for each kind."""
        same = to_json([_plain(config) | {"seed": 0}, classes, with_weights])
        if same not in self._built:
            try_out(config, classes or ("a", "b"), of_intervals=of_intervals, with_weights=with_weights)
            self._built.add(same)

    def _refuse_alike(self, jobs: list[Job]) -> None:
        """Passes where no two runs would give the same result.

        Raises:
            ConfigError: two rows, or two data entries, have the same settings.
        """
        seen: dict[tuple[str, int, str], Job] = {}
        for job in jobs:
            twin = seen.setdefault((job.key, job.seed, job.config.data.train if not job.data_digest else ""), job)
            if twin is job:
                continue
            if twin.row == job.row:
                raise ConfigError(
                    f"data {twin.data!r} and {job.data!r} hold the same videos with the same settings. Leave one out."
                )
            raise ConfigError(
                f"rows {twin.row!r} and {job.row!r} have the same settings: they would give the same result twice. "
                "Change one, or leave it out."
            )


def _for_weights(settings: Mapping[str, Any], preparation: Preparation) -> dict[str, Any]:
    """Settings of what starts from the weights of a preparation.

    Raises:
        ConfigError: other weights are set.
    """
    if settings.get("model.weights"):
        raise ConfigError(
            f"model.weights is set, and prepare = {preparation.name!r} sets it, too. Leave one of them out."
        )
    return {**settings, "model.weights": "", "model.new_head": True}


def _of_intervals(entry: DataEntry | Preparation | None, config: RunConfig) -> bool:
    return entry.make["kind"] == "events" if entry is not None and entry.make else config.task == "intervals"


def _scored_on_unseen(config: RunConfig, recipe: str | dict[str, Any], settings: Mapping[str, Any]) -> RunConfig:
    """With the last checkpoint scored, where the test videos would choose the best one and nothing else is set."""
    told = flat_settings(recipe if isinstance(recipe, dict) else read_toml(find_recipe(recipe)))
    said = SCORED in settings or SCORED in told
    if said or config.data.validation_ratio or config.optim.epochs <= config.train.eval_every:
        return config
    return replace(config, evaluation=replace(config.evaluation, checkpoint="last"))


def _resolved(recipe: str | dict[str, Any], settings: Mapping[str, Any], seed: int) -> RunConfig:
    table = recipe if isinstance(recipe, dict) else read_toml(find_recipe(recipe))
    return replace(build_run(table, settings=settings), seed=seed, output="")


def _plain(config: RunConfig) -> dict[str, Any]:
    """All settings that a result depends on, and what a file of weights holds."""
    plain = {key: value for key, value in flat_settings(to_plain(config)).items() if key not in NEUTRAL}
    plain = {key: value for key, value in plain.items() if key not in LATER or value != LATER[key]}
    weights = plain.pop("model.weights", "")
    prints = list(_weights_prints(Path(weights)))
    plain["weights"] = prints if any(prints) else weights
    return plain


def _weights_prints(path: Path) -> Iterator[str | None]:
    """Fingerprints of a file of weights, or of those in a folder; None for a file that cannot be read."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    yield from (fingerprint(file) for file in files)
