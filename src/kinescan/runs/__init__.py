"""What a verb does with a run's folder and its recipe; a module is loaded when it is first used.

The command line names verbs as `runs.train.train`, so that `--help` loads none of them.
"""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.runs import ask as ask
    from kinescan.runs import bench as bench
    from kinescan.runs import cameras as cameras
    from kinescan.runs import check as check
    from kinescan.runs import compare as compare
    from kinescan.runs import convert as convert
    from kinescan.runs import cross_validate as cross_validate
    from kinescan.runs import demo as demo
    from kinescan.runs import demo_page as demo_page
    from kinescan.runs import doctor as doctor
    from kinescan.runs import evaluate as evaluate
    from kinescan.runs import export as export
    from kinescan.runs import gpu_check as gpu_check
    from kinescan.runs import index as index
    from kinescan.runs import make_data as make_data
    from kinescan.runs import names as names
    from kinescan.runs import pack as pack
    from kinescan.runs import predict as predict
    from kinescan.runs import predict_ray as predict_ray
    from kinescan.runs import profile as profile
    from kinescan.runs import recipe as recipe
    from kinescan.runs import recipe_keys as recipe_keys
    from kinescan.runs import recipe_reference as recipe_reference
    from kinescan.runs import segments as segments
    from kinescan.runs import stream as stream
    from kinescan.runs import train as train

__getattr__ = lazy_names(
    __name__,
    {},
    (
        *("ask", "cameras", "bench", "check", "compare", "convert", "cross_validate", "demo", "demo_page", "doctor"),
        *(
            "evaluate",
            "export",
            "gpu_check",
            "index",
            "make_data",
            "names",
            "pack",
            "predict",
            "predict_ray",
            "profile",
            "recipe",
            "recipe_keys",
            "recipe_reference",
            "segments",
            "stream",
            "train",
        ),
    ),
)
