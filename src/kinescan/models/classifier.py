import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.models.saving import saved_model
from kinescan.models.saving.model_card import model_card
from kinescan.models.saving.run_record import read_run
from kinescan.models.saving.saved_model import ModelFiles, SavedModel
from kinescan.models.skeleton import shapes_only
from kinescan.models.symmetry import Symmetry, check_symmetries
from kinescan.models.timing import FrameTiming
from kinescan.models.vit.vit import check_dtype
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.hub import upload
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.vit_weights import Pretrained, load_pretrained, read_vision_encoder
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.fingerprint import fingerprint_of
from kinescan.runtime.own_modules import module_of
from kinescan.runtime.precision import Precision
from kinescan.settings import build_settings, to_plain
from kinescan.shapes import BACKGROUND, Clip, FrameLogits, Logits
from kinescan.version import __version__

# Not typing.Self: beartype, which checks shapes in the tests, cannot resolve it on a method.
Classifier = TypeVar("Classifier", bound="VideoClassifier")


@runtime_checkable
class ClassifierConfig(Protocol):
    """What every classifier's config has, beside its own fields; it is a frozen dataclass."""

    @property
    def num_classes(self) -> int:
        """Classes, the number of logits."""

    @property
    def image_size(self) -> int:
        """Side of the square frame in pixels."""


class VideoClassifier(nn.Module, ABC):
    """A model from clips to class logits that knows its labels and how its pixels are made.

    A subclass sets `config_class`, calls this constructor first, and writes `forward`, `layer_depths`, `num_layers`.

    Args:
        config: sizes and variants; num_classes and image_size among them.
        name: name that `from_pretrained` finds the class by: in the zoo, or registered.
        labels: class names in the order of the logits; None where they are unknown.
        preprocessing: how pixels become a clip; by default CLIP's at the config's image size.

    Attributes:
        name: name in the zoo.
        config: sizes and variants.
        labels: class names in the order of the logits; None where they are unknown.
        preprocessing: how pixels become a clip.
        load_report: what was taken from a checkpoint, or None if none was read.
        timing: how far apart in time the frames of its training clips were; None where it is unknown.
        trained_in: the precision that it was trained in; None where it is unknown.
        class_texts: label -> the texts that its row of the head was made from, where it started from texts; else None.
        num_clips: clips of a video, evenly spread over it, whose scores are averaged where nobody says which views.
        symmetries: changes of a clip whose answers are averaged with the clip's own, so that a mirrored clip, say, gets
            the mirrored answer (`kinescan.models.symmetry`); predictions and evaluations do so, streams do not.
        saved_rules: what events.json beside the saved model says: thresholds of events, with the fingerprint of the
            weights that they fit; None where there is none.

    Raises:
        ConfigError: labels do not fit num_classes or repeat, or preprocessing makes another size than the model takes.
    """

    config_class: ClassVar[type[Any]]
    interpolated: ClassVar[frozenset[str]] = frozenset({"image_size"})
    """Sizes that may differ from those of the weights: `load` interpolates."""
    usual_preprocessing: ClassVar[Mapping[str, Any]] = {}
    """Fields of `Preprocessing` that are usual for this class where nothing else tells them."""
    config: ClassifierConfig
    load_report: LoadReport | None

    def __init__(
        self,
        config: ClassifierConfig,
        *,
        name: str,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.labels = _checked_labels(labels, config.num_classes)
        self.preprocessing = preprocessing or Preprocessing(size=config.image_size, **self.usual_preprocessing)
        self.load_report = None
        if self.answers_frames and self.labels is not None:
            _check_background(self.labels, overlapping=self.overlapping)
        self.timing: FrameTiming | None = None
        self.trained_in: Precision | None = None
        self.saved_rules: dict[str, Any] | None = None
        self.num_clips = 1
        self.symmetries: tuple[Symmetry, ...] = ()
        self.class_texts: Mapping[str, tuple[str, ...]] | None = None
        if self.preprocessing.size != config.image_size:
            raise ConfigError(
                f"preprocessing makes frames of {self.preprocessing.size} pixels, the model takes {config.image_size}. "
                f"Set preprocessing.size to {config.image_size}, or image_size to {self.preprocessing.size}."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """What to call each class where it is shown: its label, or, where the labels are unknown, its index."""
        return self.labels if self.labels is not None else tuple(map(str, range(self.config.num_classes)))

    @property
    def answers_frames(self) -> bool:
        """Whether the model answers for every frame, with logits [B, T, K], and not for the clip, with [B, K]."""
        return getattr(self.config, "output", "clip") == "frames"

    @property
    def overlapping(self) -> bool:
        """Whether several classes, or none, may be true at once, so that each has a probability of its own."""
        return bool(getattr(self.config, "overlapping", False))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [..., K] as probabilities of the same shape, in float32 at least.

        Softmax over the classes; of classes that may overlap, the sigmoid of each.
        """
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.sigmoid() if self.overlapping else wide.softmax(dim=-1)

    @property
    def frame_seconds(self) -> float | None:
        """From frame to frame, as the model knows it: streams and long files are sampled to it. None: unknown."""
        if self.preprocessing.frame_rate:
            return 1 / self.preprocessing.frame_rate
        return None if self.timing is None else self.timing.median_seconds

    @property
    def dense_rate(self) -> float:
        """Frames a second of the training videos, where `sampling` is "dense" and all had about the same; else 0.

        In test, `frame_stride` then counts frames of that rate, whatever the rate of a video.
        """
        if self.timing is None or self.preprocessing.sampling != "dense" or not self.timing.is_steady:
            return 0.0
        return self.preprocessing.frame_stride / self.timing.median_seconds

    def weights_fingerprint(self) -> str:
        """Which weights these are, in a few bytes: of an exported model, those of the model that it was made from."""
        return fingerprint_of(self)

    @abstractmethod
    def forward(self, clip: Clip) -> Logits | FrameLogits:
        """Logits [B, K] of clips [B, T, 3, H, W], normalised as `preprocessing` says; [B, T, K] of every frame."""

    @abstractmethod
    def layer_depths(self) -> dict[str, int]:
        """How deep every pretrained parameter sits, for layer-wise learning-rate decay.

        Returns:
            Parameter name -> 0 for the embeddings, 1, 2, ... for the blocks, `num_layers` for what comes after them.
            Its learning rate is scaled by decay ** (num_layers - depth). A parameter that is absent is new: scale 1.
        """

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """The largest value in `layer_depths`."""

    def sharded_blocks(self) -> Sequence[tuple[nn.Module, tuple[str, ...]]]:
        """Parts whose parameters are gathered one part after the other where processes divide them; here none.

        Returns:
            Modules, and the methods besides `forward` that they are called by. Parameters outside them are gathered for
            the whole forward and backward pass.
        """
        return ()

    def stem_parameters(self) -> tuple[str, ...]:
        """Names of the parameters before the first part that looks at several frames.

        Raises:
            ConfigError: the model has no such part, or it comes first.
        """
        raise ConfigError(
            f"{self.name} has no temporal module with a stem before it. Leave train.freeze_stem out, and name what is "
            "to stay frozen in train.frozen."
        )

    @classmethod
    def translate(cls, checkpoint: Checkpoint) -> Pretrained:
        """What a checkpoint holds for this class of model, under its parameter names; here the encoder `vit`.

        Raises:
            CheckpointError: the checkpoint fits nothing in such a model.
        """
        return read_vision_encoder(checkpoint, prefix="vit.")

    def load(self, pretrained: Pretrained, *, skip: tuple[str, ...] = ()) -> LoadReport:
        """Takes up weights that `translate` gave, brought to this model's sizes.

        Args:
            pretrained: weights under the model's names.
            skip: prefixes of names to leave out, such as the head of other classes.

        Raises:
            CheckpointError: a tensor does not fit, or none does.
        """
        return load_pretrained(self, pretrained, skip=skip)

    def saved_part(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """The tensors that `save_pretrained` writes, and what they belong on top of: here all, and None."""
        return self.state_dict(), None

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where clips have to be."""
        return next(self.parameters()).device

    def check_clip(self, clip: Tensor) -> None:
        """Passes a clip that `forward` can take.

        Args:
            clip: [B, T, 3, H, W], in the dtype of the model (autocast converts others than float64), B and T at least
                1, H = W = image_size.

        Raises:
            ShapeError: it is something else; the message says what.
        """
        size = self.config.image_size
        wanted = f"Allowed: [B, T, 3, {size}, {size}], frames normalised as model.preprocessing says"
        if clip.dim() != 5:
            hint = " For one clip, add the batch axis: clip[None]." if clip.dim() == 4 else ""
            raise ShapeError(f"a clip must have 5 axes, got {list(clip.shape)}. {wanted}.{hint}")
        if not clip.is_floating_point():
            raise ShapeError(f"a clip must be floating point, got {str(clip.dtype).removeprefix('torch.')}. {wanted}.")
        check_dtype(clip, next(self.parameters(), None), "a clip")
        # An exported model may leave the batch open, which a comparison would close.
        if not torch.compiler.is_compiling() and clip.shape[0] < 1:
            raise ShapeError(f"a batch must have at least 1 clip, got {list(clip.shape)}. {wanted}.")
        if clip.shape[1] < 1:
            raise ShapeError(f"a clip must have at least 1 frame, got {list(clip.shape)}. {wanted}.")
        if clip.shape[2] != 3:
            raise ShapeError(f"a clip must have 3 colour channels on axis 2, got {list(clip.shape)}. {wanted}.")
        if tuple(clip.shape[3:]) != (size, size):
            raise ShapeError(
                f"frames must be {size} x {size}, got {clip.shape[3]} x {clip.shape[4]}. "
                f"Resize them, or build the model with image_size={clip.shape[3]}."
            )

    def save_pretrained(self, folder: str | Path, *, run: str | Path | None = None, repo_id: str | None = None) -> None:
        """Writes model.safetensors, config.json and README.md (a model card); existing ones are replaced at the end.

        Thresholds of events that the model was loaded with are written, too (events.json), as long as it has the
        weights that they were chosen for.

        Args:
            folder: made if need be.
            run: the folder of the run that trained the model: its recipe and scores go into the card.
            repo_id: the name that the model will have on the Hugging Face hub, for the card.

        Raises:
            CheckpointError: the folder cannot be written, or `run` is not a run's folder.
            ConfigError: labels were changed and no longer fit the config.
        """
        saved_model.write(Path(folder), self.files_to_save(run=run, repo_id=repo_id))

    def files_to_save(self, *, run: str | Path | None = None, repo_id: str | None = None) -> ModelFiles:
        """What `save_pretrained` writes, to be written later: the tensors are the model's own.

        Args:
            run: as for `save_pretrained`.
            repo_id: as for `save_pretrained`.

        Raises:
            CheckpointError: `run` is not a run's folder.
            ConfigError: labels were changed and no longer fit the config.
        """
        tensors, base = self.saved_part()
        saved = SavedModel(
            kinescan_version=__version__,
            model=self.name,
            config=to_plain(self.config),
            labels=_plain_labels(_checked_labels(self.labels, self.config.num_classes)),
            preprocessing=to_plain(self.preprocessing),
            base=base,
            module=module_of(type(self)),
            timing=None if self.timing is None else to_plain(self.timing),
            trained_in=self.trained_in,
            class_texts=self.class_texts,
            num_clips=self.num_clips,
            symmetries=self.symmetries,
        )
        card = model_card(
            name=saved.model,
            config=saved.config,
            labels=saved.labels,
            preprocessing=saved.preprocessing,
            timing=saved.timing,
            num_parameters=self.num_parameters,
            base=base,
            module=saved.module,
            run=None if run is None else read_run(run),
            repo_id=repo_id,
        )
        return ModelFiles(saved=saved, tensors=tensors, card=card, rules=self._fitting_rules())

    @classmethod
    def from_pretrained(cls: type[Classifier], source: str | Path, *, revision: str | None = None) -> Classifier:
        """A model that `save_pretrained` wrote, on the CPU, in evaluation mode and in float32.

        Args:
            source: folder, or name on the Hugging Face hub (user/name).
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: the folder is missing or damaged, of a newer kinescan, or of another class of model.
        """
        folder = saved_model.locate(source, revision=revision)
        saved = saved_model.read_config(folder)
        weights = saved_model.read_weights(folder)
        build = cls.builder(saved, folder)
        # Before memory is taken for what config.json says, it is compared with the weights.
        with shapes_only():
            _refuse_misfits(build(), weights, folder)
        model = build()
        model.load_state_dict(weights)
        model.load_report = LoadReport(source=str(folder), layout="kinescan", loaded=tuple(weights))
        return model.eval()

    @classmethod
    def builder(cls: type[Classifier], saved: SavedModel, folder: Path) -> Callable[[], Classifier]:
        """Makes the model that config.json of a saved one describes, with new weights.

        Raises:
            CheckpointError: the config does not fit this class; or, when called, its labels or preprocessing.
        """
        rules = saved_model.read_rules(folder)

        def build() -> Classifier:
            try:
                model = cls(
                    build_settings(cls.config_class, saved.config, where="config"),
                    name=saved.model,
                    labels=saved.labels,
                    preprocessing=build_settings(Preprocessing, saved.preprocessing, where="preprocessing"),
                )
                if saved.timing is not None:
                    model.timing = build_settings(FrameTiming, saved.timing, where="timing")
                model.trained_in, model.num_clips = saved.trained_in, saved.num_clips
                check_symmetries(saved.symmetries, model.config.num_classes, answers_frames=model.answers_frames)
                model.symmetries = saved.symmetries
                model.saved_rules = rules
                model.class_texts = saved.class_texts
                return model
            except ConfigError as error:
                raise CheckpointError(
                    f"{folder / saved_model.CONFIG_FILE} does not fit {cls.__name__}: {error}"
                ) from error

        return build

    def _fitting_rules(self) -> dict[str, Any] | None:
        """The saved thresholds, where they name these weights, or none at all."""
        rules = self.saved_rules
        of_others = rules is not None and rules.get("weights", "") not in ("", self.weights_fingerprint())
        return None if of_others else rules

    def push_to_hub(self, repo_id: str, *, private: bool = False, run: str | Path | None = None) -> str:
        """Uploads the saved model to the Hugging Face hub and returns the address of the commit.

        Args:
            repo_id: "user/name"; the repository is made if need be.
            private: whether a new repository is private.
            run: the folder of the run that trained the model: its recipe, data, views and scores go into the card.

        Raises:
            CheckpointError: not logged in, no right to write there, no connection, or `run` is not a run's folder.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, run=run, repo_id=repo_id)
            return upload(Path(folder), repo_id, private=private)


def _check_background(labels: Sequence[str], *, overlapping: bool) -> None:
    """Passes where class 0 says that nothing happens, or, of overlapping classes, where none does."""
    if overlapping and BACKGROUND in labels:
        raise ConfigError(
            f"overlapping classes need no {BACKGROUND!r}: where nothing happens, all of them are unlikely. Leave it "
            "out of the labels, or set overlapping = false."
        )
    if not overlapping and labels[0] != BACKGROUND:
        raise ConfigError(
            f"a model that answers for every frame has {BACKGROUND!r} as class 0: nothing happens. Got {labels[0]!r} "
            f"there. Give labels=[{BACKGROUND!r}, ...], or set overlapping = true."
        )


def _plain_labels(labels: tuple[str, ...] | None) -> list[str] | None:
    return None if labels is None else list(labels)


def _checked_labels(labels: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"labels must be a list of strings, got {labels!r}.")
    if len(labels) != num_classes:
        raise ConfigError(
            f"{len(labels)} labels for a model of {num_classes} classes. "
            "Give one label for each class, or leave num_classes out."
        )
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise ConfigError(f"labels must differ from each other; given more than once: {', '.join(twice[:5])}.")
    return tuple(labels)


def _refuse_misfits(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raises an error unless every tensor is there, with its shape, and none is left over."""
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in weights],
        "left over": [name for name in weights if name not in own],
        "of another shape": [name for name in own if name in weights and own[name].shape != weights[name].shape],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"{folder / saved_model.WEIGHTS_FILE} does not fit its {saved_model.CONFIG_FILE}: tensors "
            f"{'; '.join(found)}. One of them was replaced; save or fetch the model again."
        )
