import difflib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from kinescan.data.datasets import Unreadable, VideoDataset
from kinescan.data.listing import VideoItem
from kinescan.data.loader import Batch, LoaderConfig, check_room, make_loader
from kinescan.data.sampling import Views
from kinescan.errors import ConfigError, KinescanError, NonFiniteError, ShapeError, VideoError
from kinescan.evaluation.metrics import Metrics, compute_metrics
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.symmetry import clip_logits
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.distributed import Processes, joined_processes

logger = logging.getLogger(__name__)

VIEWS_PER_FORWARD = 8
"""How many views go through the model at once by default; memory grows with it, results do not change."""


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """What the model says of one video.

    Attributes:
        item: the video and its label.
        label: the true class's text.
        prediction: the best class's text.
        score: its probability.
        scores: [K], the probability of every class, in the order of the model's labels.
    """

    item: VideoItem
    label: str
    prediction: str
    score: float
    scores: Tensor

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One prediction for every video that could be read, and a list of those that could not.

    Attributes:
        labels: the model's classes, in the order of the scores.
        items: the videos that were scored, in the order of the data.
        scores: [n, K] float64, softmax averaged over views.
        targets: [n] int64, the true class of each video among `labels`.
        unreadable: the files that could not be read, each with its reason; none of the numbers counts them.
        views: the views that were averaged.
        seconds: how long it took.
        features: [n, D] float32, what the head takes, averaged over views; None where they were not asked for.
    """

    labels: tuple[str, ...]
    items: tuple[VideoItem, ...]
    scores: Tensor
    targets: Tensor
    unreadable: tuple[Unreadable, ...]
    views: Views
    seconds: float
    features: Tensor | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """Accuracies, confusions and calibration of the videos that were scored."""
        return compute_metrics(self.scores, self.targets, self.labels)

    @cached_property
    def videos(self) -> tuple[VideoScore, ...]:
        """What the model says of each video, in the order of `items`."""
        return tuple(
            _video_score(item, self.labels[target], self.labels, scores)
            for item, target, scores in zip(self.items, self.targets.tolist(), self.scores, strict=True)
        )


def evaluate_model(
    model: VideoClassifier,
    dataset: VideoDataset,
    *,
    loader: LoaderConfig | None = None,
    labels: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    views_per_forward: int = VIEWS_PER_FORWARD,
    with_features: bool = False,
    on_scored: Callable[[VideoScore, int, int], None] | None = None,
) -> Evaluation:
    """Scores every video of a data set once: softmax averaged over its views.

    Files that cannot be read are listed and left out; none is swapped for another. Classes are matched by their texts,
    so that a model and a data set that order them differently agree.

    Where torch.distributed joins several processes, all of them call this, with the same model and data: each scores
    its part of the videos, every video is scored by exactly one, and all get the whole result.

    Args:
        model: used in evaluation mode, left as it was.
        dataset: videos with their views, made with mode="test".
        loader: how many views are read at once, at least those of one video, by how many workers; by default in this
            process.
        labels: the texts of the model's classes in the order of its logits, for a model that was saved without them.
        device: where to compute, and where the model stays; by default where it is.
        views_per_forward: how many views go through the model at once.
        with_features: keep what the head takes of every video, averaged over its views.
        on_scored: called with each video as it is scored, how many of this process's videos are done (unreadable ones
            among them), and how many there are, so that nothing is lost if the rest never comes.

    Returns:
        Scores, labels and metrics, and the files that could not be read.

    Raises:
        ConfigError: a class of the data set is unknown to the model, the model's classes have no texts, it answers for
            every frame, or the data set is made for training.
        VideoError: none of the files could be read.
        NonFiniteError: the model gives NaN or infinity for a video, which is named.
    """
    started = time.perf_counter()
    if dataset.mode != "test":
        raise ConfigError(f'evaluation takes a data set with mode="test", got mode="{dataset.mode}".')
    if model.answers_frames:
        raise ConfigError(
            f"{model.name} answers for every frame, and these videos have one label each. Evaluate it on labels with a "
            "start and an end: kinescan eval --data LABELS."
        )
    model_labels = known_labels(model, labels)
    label_indices = match_labels(dataset.classes, model_labels)
    if device is not None:
        model = model.to(device)
    settings = _of_views(loader or LoaderConfig(num_workers=0), dataset)

    def tell(index: int, scores: Tensor, done: int, total: int) -> None:
        if on_scored is not None:
            item = dataset.items[index]
            label = model_labels[label_indices[item.label]]
            on_scored(_video_score(item, label, model_labels, scores), done, total)

    scored = _from_all(
        lambda: _score_part(model, dataset, settings, views_per_forward, with_features=with_features, tell=tell),
        len(model_labels),
    )
    if scored.unreadable:
        num_lost = len(scored.unreadable)
        logger.warning("%d of %d videos could not be read and were not scored", num_lost, len(dataset.items))
    if not scored.scores:
        first = scored.unreadable[0]
        raise VideoError(first.path, f"{first.reason} None of the {len(dataset.items)} videos could be read.")
    seconds = time.perf_counter() - started
    return _in_order(scored, dataset, model_labels, label_indices, seconds, with_features=with_features)


def _of_views(loader: LoaderConfig, dataset: VideoDataset) -> LoaderConfig:
    """A batch of videos holds all their views: it is to take no more memory than one of single clips."""
    return replace(loader, batch_size=max(1, loader.batch_size // dataset.views.num_views))


def check_evaluation_room(dataset: VideoDataset, loader: LoaderConfig, *, num_processes: int = 1) -> None:
    """Passes where `evaluate_model` has room for what its worker processes read, before it is called.

    Args:
        dataset: see `evaluate_model`.
        loader: see `evaluate_model`.
        num_processes: that share the videos.

    Raises:
        ConfigError: shared memory is too small; says how much is needed and how to get it.
    """
    settings = _of_views(loader, dataset)
    check_room(dataset, settings, -(-len(dataset) // (num_processes * settings.batch_size)))


def _video_score(item: VideoItem, label: str, labels: Sequence[str], scores: Tensor) -> VideoScore:
    best = int(scores.argmax())
    return VideoScore(item=item, label=label, prediction=labels[best], score=float(scores[best]), scores=scores)


@dataclass
class _Scored:
    """What one process scored, by the index of the video among the items."""

    scores: dict[int, Tensor] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


def _in_order(
    scored: _Scored,
    dataset: VideoDataset,
    labels: tuple[str, ...],
    label_indices: Sequence[int],
    seconds: float,
    *,
    with_features: bool,
) -> Evaluation:
    """What all processes scored, in the order of the data; `label_indices`: the data set's classes among `labels`."""
    order = sorted(scored.scores)
    items = tuple(dataset.items[index] for index in order)
    return Evaluation(
        labels=labels,
        items=items,
        scores=torch.stack([scored.scores[index] for index in order]),
        targets=torch.tensor([label_indices[item.label] for item in items]),
        unreadable=tuple(sorted(scored.unreadable, key=lambda file: file.item_index)),
        views=dataset.views,
        seconds=seconds,
        features=torch.stack([scored.features[index] for index in order]) if with_features else None,
    )


def _from_all(score: Callable[[], _Scored], num_classes: int) -> _Scored:
    """What this process and those beside it scored; an error of one of them is raised in all."""
    processes = joined_processes()
    if processes.count == 1:
        return score()
    own, problem = _Scored(), None
    try:
        own = score()
    except KinescanError as error:
        # The others wait for this process: it has to tell them.
        problem = error
    whole = _Scored()
    for unreadable, met in processes.gather((own.unreadable, problem)):
        if met is not None:
            raise met
        whole.unreadable += unreadable
    whole.scores = _gather_rows(processes, own.scores, num_classes, torch.float64)
    widths = processes.gather(next((len(row) for row in own.features.values()), 0))
    if any(widths):
        whole.features = _gather_rows(processes, own.features, max(widths), torch.float32)
    return whole


def _gather_rows(processes: Processes, rows: Mapping[int, Tensor], width: int, dtype: torch.dtype) -> dict[int, Tensor]:
    """Index of the video -> its row, of all processes."""
    indices = processes.gather_rows(torch.tensor(list(rows), dtype=torch.int64)).tolist()
    own = torch.stack(list(rows.values())) if rows else torch.empty(0, width, dtype=dtype)
    return dict(zip(indices, processes.gather_rows(own), strict=True))


def _score_part(
    model: VideoClassifier,
    dataset: VideoDataset,
    loader: LoaderConfig,
    views_per_forward: int,
    *,
    with_features: bool,
    tell: Callable[[int, Tensor, int, int], None],
) -> _Scored:
    """The videos that fall to this process."""
    processes = joined_processes()
    batches = make_loader(
        dataset,
        loader,
        shuffle=False,
        seed=0,
        num_processes=processes.count,
        process_index=processes.index,
    )
    part, num_done = _Scored(), 0
    num_own = -(-len(dataset.items) // processes.count)
    model = evaluation_view(model)
    with _features_of(model, wanted=with_features) as features:
        for batch in batches:
            part.unreadable += batch.unreadable
            scored = _score_batch(model, dataset, batch, views_per_forward)
            part.scores |= scored
            num_done += len(batch.unreadable) + len(scored)
            for index, scores in scored.items():
                tell(index, scores, min(num_done, num_own), num_own)
            if with_features and batch.item_indices:
                # of changed clips (`clip_logits`) nothing is kept: the first of each pass are of the clip itself
                own = (
                    torch.cat(features[:: 1 + len(model.symmetries)]).unflatten(0, batch.clips.shape[:2]).mean(1)
                )  # [B, D]
                part.features |= dict(zip(batch.item_indices, own.clone(), strict=True))
                features.clear()
    return part


@contextmanager
def _features_of(model: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """A list that gets what the head takes, [V, D] float32 on the CPU, of every forward pass meanwhile."""
    taken: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken.append(inputs[0].detach().float().cpu())

    head = getattr(model, "head", None)
    if wanted and not isinstance(head, nn.Module):
        raise ConfigError(
            f"{type(model).__name__} has no head whose features could be taken. Leave features out, or evaluate the "
            "model that it was exported from."
        )
    handle = head.register_forward_pre_hook(take) if wanted and isinstance(head, nn.Module) else None
    try:
        yield taken
    finally:
        if handle is not None:
            handle.remove()


def _score_batch(
    model: VideoClassifier, dataset: VideoDataset, batch: Batch, views_per_forward: int
) -> dict[int, Tensor]:
    """Item index -> [K] probabilities, of a batch; views of several videos go through one forward pass."""
    if not batch.item_indices:
        return {}
    views = batch.clips.flatten(0, 1)
    logits = _logits(model, views, views_per_forward).unflatten(0, batch.clips.shape[:2])  # [B, V, K]
    for index, video, own in zip(batch.item_indices, batch.clips, logits, strict=True):
        check_finite(own, video, name=shown_path(dataset.items[index].path))
    return dict(zip(batch.item_indices, logits.softmax(2).mean(1), strict=True))


def _logits(model: VideoClassifier, views: Tensor, views_per_forward: int) -> Tensor:
    """[V, K] float64 on the CPU, over the model's symmetries."""
    with torch.no_grad():
        parts = views.split(views_per_forward)
        return torch.cat([clip_logits(model, part.to(model.device), model.symmetries) for part in parts])


def score_videos(
    model: VideoClassifier,
    videos: Sequence[Tensor],
    *,
    names: Sequence[str],
    views_per_forward: int = VIEWS_PER_FORWARD,
) -> list[Tensor]:
    """Probabilities of each class for each video: softmax of each view, averaged.

    Args:
        model: in evaluation mode.
        videos: for each, its views, [V, T, 3, H, W], normalised; those of all videos go through the model together.
        names: of the videos, for the error.
        views_per_forward: how many views go through the model at once.

    Returns:
        [K] float64 on the CPU for each video.

    Raises:
        ShapeError: views are not [V, T, 3, H, W].
        NonFiniteError: a logit is NaN or infinite; the video is named.
    """
    for views in videos:
        if views.ndim != 5:
            raise ShapeError(f"views must be [V, T, 3, H, W], got {list(views.shape)}. One view is views[None].")
    logits = _logits(model, torch.cat(list(videos)), views_per_forward).split([len(views) for views in videos])
    for own, views, name in zip(logits, videos, names, strict=True):
        check_finite(own, views, name=name)
    return [own.softmax(1).mean(0) for own in logits]


def check_finite(logits: Tensor, pixels: Tensor, *, name: str) -> None:
    """Passes when every logit is finite.

    Args:
        logits: [views, K].
        pixels: [views, T, 3, H, W], what the model was given.
        name: of the video, for the error.

    Raises:
        NonFiniteError: one is not; the message names the video and says whether its pixels are to blame.
    """
    if torch.isfinite(logits).all():
        return
    if torch.isfinite(pixels).all():
        cause = "its pixels are finite, so the weights are broken: load another checkpoint, or train with a lower lr"
    else:
        cause = "its pixels are not finite either: check the file and preprocessing.std"
    raise NonFiniteError(f"{name}: the model gives NaN or infinity; {cause}.")


def known_labels(model: VideoClassifier, labels: Sequence[str] | None = None) -> tuple[str, ...]:
    """The texts of the model's classes, in the order of its logits.

    Args:
        model: may know them itself.
        labels: said by the caller, for a model that does not.

    Raises:
        ConfigError: they are unknown, or there are more or fewer than classes.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"])
        >>> known_labels(model)
        ('left', 'right')
    """
    num_classes = model.config.num_classes
    given = model.labels if labels is None else tuple(labels)
    if given is None:
        raise ConfigError(
            f"the model has no labels, so it is unknown which of its {num_classes} outputs is which class. "
            "Pass labels=[...], their texts in the order of the outputs, or create_model(..., labels=[...])."
        )
    if len(given) != num_classes or len(set(given)) != num_classes:
        raise ConfigError(
            f"{len(set(given))} different labels for a model of {num_classes} classes. Give one label for each class."
        )
    return given


def match_labels(classes: Sequence[str], labels: Sequence[str]) -> list[int]:
    """For each class of a data set, its index among the model's labels; matched by text, so order does not matter.

    Args:
        classes: the data set's classes.
        labels: the model's labels; they may be more.

    Raises:
        ConfigError: the model does not know a class.

    Example:
        >>> match_labels(["left", "right"], ["down", "right", "left"])
        [2, 1]
    """
    index_of = {label: index for index, label in enumerate(labels)}
    unknown = [label for label in classes if label not in index_of]
    if unknown:
        near = difflib.get_close_matches(unknown[0], labels, n=1, cutoff=0.5)
        known = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        hint = f"Did you mean {near[0]!r}?" if near else f"It knows {known}."
        raise ConfigError(
            f"{len(unknown)} of the {len(classes)} classes of the data are unknown to the model, the first is "
            f"{unknown[0]!r}. {hint} Evaluate on data with the model's classes, or train on these."
        )
    return [index_of[label] for label in classes]
