"""Readers of data sets as they are published, one file each; `kinescan.data.listing.DATASETS` names them."""

from kinescan.data.readers.breakfast import read_breakfast
from kinescan.data.readers.class_folders import read_folder
from kinescan.data.readers.hmdb51 import read_hmdb51
from kinescan.data.readers.kinetics import read_kinetics
from kinescan.data.readers.lists import read_list
from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing
from kinescan.data.readers.ssv2 import read_ssv2
from kinescan.data.readers.ucf101 import read_ucf101
from kinescan.runtime.lazy import old_names

__all__ = [
    "LabelSource",
    "LabelledVideo",
    "Listing",
    "read_breakfast",
    "read_folder",
    "read_hmdb51",
    "read_kinetics",
    "read_list",
    "read_ssv2",
    "read_ucf101",
]

__getattr__ = old_names(__name__, {"Source": "LabelSource"})
