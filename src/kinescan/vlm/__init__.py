"""Long video into a pretrained video VLM at constant cost per frame."""

from kinescan.vlm.answer import Answer, AnswerToken, StreamStats
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import FAMILIES, Features, PixelSettings, Vlm, load_vlm
from kinescan.vlm.generation import Generation
from kinescan.vlm.policy import POLICIES, Candidates, Policy, make_policy
from kinescan.vlm.saved_stream import load_stream
from kinescan.vlm.stream import VideoStream, open_stream
from kinescan.vlm.together import ask_together, push_together

__all__ = [
    "FAMILIES",
    "POLICIES",
    "Answer",
    "AnswerToken",
    "Candidates",
    "Features",
    "Generation",
    "PixelSettings",
    "Policy",
    "StreamConfig",
    "StreamStats",
    "VideoStream",
    "Vlm",
    "ask_together",
    "load_stream",
    "load_vlm",
    "make_policy",
    "open_stream",
    "push_together",
]
