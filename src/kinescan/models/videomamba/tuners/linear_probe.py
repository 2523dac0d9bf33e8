from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMambaConfig


class LinearProbeVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with a new linear head, which alone is trained."""

    config_class = VideoMambaConfig
    trained = ("head.*",)

    def make_tuner(self) -> Tuner:
        """One that changes nothing."""
        return Tuner()
