"""The video peers by name: importing this makes `create_model` and `fit` take them."""

from kinescan.models.registry import find_model, register_model
from peers.st_adapter import STAdapterClassifier
from peers.timesformer import TimeSformer
from peers.video import VideoPeer
from peers.videomae import JointAttention

VIDEO_PEERS: dict[str, type[VideoPeer]] = {
    "peer_timesformer": TimeSformer,
    "peer_joint": JointAttention,
    "peer_st_adapter": STAdapterClassifier,
}

for _name, _peer in VIDEO_PEERS.items():
    if find_model(_name) is None:
        register_model(_name, _peer.config_class, _peer)
