from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMambaConfig


class HeadOnlyVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with a new linear head (a linear probe)."""

    config_class = VideoMambaConfig
    trained = ("head.*",)

    def make_tuner(self) -> Tuner:
        """One that changes nothing."""
        return Tuner()
