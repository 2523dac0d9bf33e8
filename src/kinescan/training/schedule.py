from dataclasses import dataclass, replace

from kinescan.training.optim import OptimConfig, lr_ratio


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step: warm-up, then a cosine to the end of the last epoch.

    A function of the step alone. With more epochs, the whole curve is stretched: a run that is resumed with more of
    them continues with the rate that the longer curve has at its step, which is higher than where the shorter one
    ended.

    Attributes:
        optim: learning rate, warm-up and epochs.
        clips_per_step: clips in a step of all processes together.
        steps_per_epoch: steps in an epoch.

    Example:
        >>> optim = OptimConfig(lr=1.0, epochs=2, warmup_epochs=0)
        >>> short = Schedule(optim=optim, clips_per_step=256, steps_per_epoch=4)
        >>> round(short.lr(6), 3), round(short.with_epochs(4).lr(6), 3)
        (0.155, 0.694)
    """

    optim: OptimConfig
    clips_per_step: int
    steps_per_epoch: int

    def lr(self, step: int) -> float:
        """The learning rate of the step about to be taken, from 0."""
        return self.optim.peak_lr(self.clips_per_step) * lr_ratio(
            step,
            num_steps=self.optim.epochs * self.steps_per_epoch,
            warmup_steps=self.optim.warmup_epochs * self.steps_per_epoch,
            min_ratio=self.optim.min_lr_ratio,
        )

    def with_epochs(self, epochs: int) -> "Schedule":
        """The same for another number of epochs."""
        return replace(self, optim=replace(self.optim, epochs=epochs))
