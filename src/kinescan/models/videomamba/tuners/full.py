from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMambaConfig


class FullVideoMamba(TunedVideoMamba):
    """A VideoMamba all of whose weights are trained; nothing is added. It is saved whole."""

    config_class = VideoMambaConfig
    trained = ("*",)

    def make_tuner(self) -> Tuner:
        """One that changes nothing."""
        return Tuner()
