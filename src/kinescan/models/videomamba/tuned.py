import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError
from kinescan.layers.bimamba import UNCHANGED, MixerChanges
from kinescan.models.saving import base_identity, saved_model
from kinescan.models.saving.base_identity import BaseIdentity
from kinescan.models.skeleton import shapes_only
from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig
from kinescan.models.weights.checkpoint_file import open_checkpoint
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.videomamba_weights import fit_tensors
from kinescan.models.weights.vit_weights import Pretrained
from kinescan.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

# Not typing.Self: beartype, which checks shapes in the tests, cannot resolve it on a method.
Tuned = TypeVar("Tuned", bound="TunedVideoMamba")


class Tuner(nn.Module):
    """What is trained on top of a frozen VideoMamba, and where it reaches in; this one changes nothing.

    Sequences are [B, 1 + T * M, W]: the class token, then M tokens for each time step. `hidden` is what a block gave,
    before it is added to the residual stream; `residual` is that stream, float32.
    """

    def begin(self, hidden: Tensor) -> Tensor:
        """What enters the first block, [B, 1 + T * M, W], for the embedded clip `hidden` [B, 1 + T * N, W]."""
        return hidden

    def enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What enters block `index`, which adds the two before its normalisation.

        Args:
            index: of the block, from 0.
            hidden: [B, 1 + T * M, W], the previous block's output.
            residual: [B, 1 + T * M, W], the residual stream without it; None before the first block.

        Returns:
            Both, in these shapes.
        """
        return hidden, residual

    def inside(self, index: int) -> MixerChanges:
        """What is added inside block `index`."""
        return UNCHANGED

    def leave(self, index: int, hidden: Tensor) -> Tensor:
        """What leaves block `index`: [B, 1 + T * M, W], for its output `hidden` of the same shape."""
        return hidden

    @contextmanager
    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """For the length of a block, what `wrap` makes of each method, and of each change inside, is called instead."""
        inside = self.inside

        def wrapped_inside(index: int) -> MixerChanges:
            changes = inside(index)
            found = {name: change for name, change in vars(changes).items() if change is not None}
            return replace(changes, **{name: wrap(change) for name, change in found.items()})

        methods = {name: wrap(getattr(self, name)) for name in ("begin", "enter", "leave")}
        methods["inside"] = wrapped_inside
        for name, method in methods.items():
            object.__setattr__(self, name, method)
        try:
            yield
        finally:
            for name in methods:
                object.__delattr__(self, name)


class TunedVideoMamba(VideoMamba, ABC):
    """A VideoMamba whose own weights are frozen, with a tuner on top.

    Parameters that match none of `trained` are frozen when the model is made; the training loop leaves them so. What a
    base that is loaded has nothing for is trained, too. A base
    that was loaded from a file is not saved again: the folder holds what was trained, and the base's name and SHA-256.

    Args:
        config: the architecture.
        name: its name in the zoo.
        labels: the classes' texts.
        preprocessing: how pixels become clips.

    Attributes:
        trained: patterns of the names of parameters that are trained.
        tuner: what is on top of the base.
        base: which weights the frozen part came from; None while it came from nowhere.
    """

    trained: ClassVar[tuple[str, ...]] = ("tuner.*", "head.*", "norm_f.*")
    base: BaseIdentity | None

    def __init__(
        self,
        config: Any,
        *,
        name: str,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        self.base = None
        self.tuner = self.make_tuner()
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(self.is_trained(key))

    @abstractmethod
    def make_tuner(self) -> Tuner:
        """The tuner that the config asks for."""

    @classmethod
    def is_trained(cls, name: str) -> bool:
        """Whether a parameter of this name is trained."""
        return any(fnmatchcase(name, pattern) for pattern in cls.trained)

    @property
    def num_trained(self) -> int:
        """Parameters that are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def load(self, pretrained: Pretrained, *, skip: tuple[str, ...] = ()) -> LoadReport:
        """Takes up a base, and remembers which: `save_pretrained` writes its identity instead of its weights.

        Raises:
            CheckpointError: a tensor fits neither as it is nor interpolated.
        """
        report = super().load(pretrained, skip=skip)
        for name in report.missing:
            # What the base has nothing for, such as positions in time of an image model, is new and so trained.
            self.get_parameter(name).requires_grad_(True)
        self.base = BaseIdentity(
            source=base_identity.lasting_name(pretrained.source),
            sha256=self._digest_of_base(pretrained),
            loaded=base_identity.digest(self._frozen(report.loaded)),
            names=tuple(name for name in report.loaded if not self.is_trained(name)),
        )
        return report

    def saved_part(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """What was trained, and the base it belongs to; everything where the base came from no file, or was changed."""
        state = self.state_dict()
        if self.base is None or all(self.is_trained(name) for name in state):
            return state, None
        if base_identity.digest(self._frozen(self.base.names)) != self.base.loaded:
            logger.warning(
                "%s: the frozen weights are no longer those of %s; all of the model is saved",
                self.name,
                self.base.source,
            )
            return state, None
        left_out = set(self.base.names)
        tuned = {name: tensor for name, tensor in state.items() if name not in left_out}
        return tuned, {"source": self.base.source, "sha256": self.base.sha256}

    @classmethod
    def from_pretrained(
        cls: type[Tuned], source: str | Path, *, revision: str | None = None, base: str | Path | None = None
    ) -> Tuned:
        """A model that `save_pretrained` wrote, on the base that it belongs to.

        Args:
            source: folder, or name on the Hugging Face hub (user/name).
            revision: branch, tag or commit on the hub.
            base: where the base's weights are now; by default where they were when it was trained, or a file of the
                same name in the folder.

        Raises:
            CheckpointError: folder or base is missing or damaged, or it is another base.
        """
        folder = saved_model.locate(source, revision=revision)
        saved = saved_model.read_config(folder)
        if saved.base is None:
            if base is not None:
                raise CheckpointError(f"{folder} holds a whole model, which needs no base. Leave base out.")
            return super().from_pretrained(folder)
        build = cls.builder(saved, folder)
        with shapes_only():
            skeleton = build()
        pretrained = cls.translate(open_checkpoint(base_identity.find_base(saved.base, folder, base)))
        # Before anything is loaded: a base of another size is another base, too.
        _refuse_other_base(saved.base, folder, source=pretrained.source, sha256=cls._digest_of_base(pretrained))
        # And before memory is taken for what config.json says.
        skeleton.load(pretrained, skip=("head.",))
        skeleton.load_tuned(folder)
        model = build()
        model.load(pretrained, skip=("head.",))
        model.load_report = model.load_tuned(folder)
        return model.eval()

    def load_tuned(self, folder: str | Path) -> LoadReport:
        """Takes up what was trained on top of the same base; the gate's kernel is interpolated to this model's grid.

        Args:
            folder: a folder that `save_pretrained` wrote.

        Returns:
            What became of every tensor; `notes` names what was interpolated.

        Raises:
            CheckpointError: it belongs to another base, another kind of tuner or other sizes.
        """
        folder = Path(folder)
        saved, weights = saved_model.read_config(folder), saved_model.read_weights(folder)
        if saved.base is None:
            raise CheckpointError(
                f"{folder} holds a whole model, not a tuned part. Load it with from_pretrained(folder)."
            )
        if self.base is None:
            raise CheckpointError(
                f"{folder} belongs to the base {saved.base['source']}, but this model's base came from no file. "
                "Make the model with weights=BASE first."
            )
        _refuse_other_base(saved.base, folder, source=self.base.source, sha256=self.base.sha256)
        own = self.state_dict()
        fitted, notes = fit_tensors(weights, own)
        expected = [name for name in own if self.is_trained(name)]
        wrong = [name for name in fitted if name not in own or own[name].shape != fitted[name].shape]
        wrong += [name for name in expected if name not in fitted]
        if wrong:
            raise CheckpointError(
                f"{folder}: {saved.model} was tuned with other sizes than this {self.name}: {', '.join(wrong[:3])}"
                f"{', ...' if len(wrong) > 3 else ''} do not fit. Build the model as its config.json says, or use "
                "from_pretrained(folder)."
            )
        self.load_state_dict(fitted, strict=False, assign=any(tensor.is_meta for tensor in own.values()))
        self.labels = None if saved.labels is None else tuple(saved.labels)
        return LoadReport(
            source=str(folder),
            layout="kinescan",
            loaded=tuple(fitted),
            resized=tuple(notes),
            notes=tuple(notes.values()),
        )

    @classmethod
    def _digest_of_base(cls, pretrained: Pretrained) -> str:
        """The SHA-256 of the weights that are frozen, as they are in the checkpoint."""
        return base_identity.digest({n: tensor for n, tensor in pretrained.tensors.items() if not cls.is_trained(n)})

    def _frozen(self, names: Sequence[str]) -> dict[str, Tensor]:
        state = self.state_dict()
        return {name: state[name] for name in names if not self.is_trained(name)}

    def _begin(self, hidden: Tensor) -> Tensor:
        return self.tuner.begin(hidden)

    def _enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.tuner.enter(index, hidden, residual)

    def _inside(self, index: int) -> MixerChanges:
        return self.tuner.inside(index)

    def _leave(self, index: int, hidden: Tensor) -> Tensor:
        return self.tuner.leave(index, hidden)


def _refuse_other_base(recorded: Mapping[str, Any], folder: Path, *, source: str, sha256: str) -> None:
    if sha256 != recorded["sha256"]:
        raise CheckpointError(
            f"{folder} was tuned on another base: {recorded['source']} (SHA-256 {recorded['sha256'][:12]}...), "
            f"this is {source} (SHA-256 {sha256[:12]}...). Give the base it belongs to: "
            "from_pretrained(folder, base=FILE)."
        )


def split_frames(hidden: Tensor, config: VideoMambaConfig) -> tuple[Tensor, Tensor]:
    """The class token [B, 1, W] and the tokens of every time step [B, T, M, W] of a sequence [B, 1 + T * M, W]."""
    return hidden[:, :1], hidden[:, 1:].unflatten(1, (config.num_steps, -1))


def join_frames(class_token: Tensor, frames: Tensor) -> Tensor:
    """The reverse of `split_frames`: [B, 1, W] and [B, T, M, W] as one sequence [B, 1 + T * M, W]."""
    return torch.cat([class_token, frames.flatten(1, 2)], dim=1)
