import importlib

from kinescan.runtime.optional_package import optional_package


def register_transformers() -> None:
    """Lets transformers' Auto classes and pipelines load what `kinescan export --to transformers` wrote.

    Call it once, before or after transformers is imported; more calls change nothing. Without it, importing kinescan
    leaves transformers as it is.

    Raises:
        DependencyError: transformers is not installed.

    Example:
        >>> ks.register_transformers()
        >>> from transformers import AutoConfig
        >>> AutoConfig.for_model("kinescan").model_type
        'kinescan'
    """
    optional_package("transformers", extra="vlm")
    importlib.import_module("kinescan.inference.transformers_classes").register()
