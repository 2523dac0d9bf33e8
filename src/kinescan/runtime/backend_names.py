from typing import Literal

Backend = Literal["reference", "blockwise", "dense", "numba", "triton"]
"""Names of the backends that an op may have; they are known without loading torch."""
