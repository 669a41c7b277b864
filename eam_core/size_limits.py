"""How large a network a file may ask for: sizes read from keys and shapes are bounded before anything is built."""

import dataclasses
from typing import Any

# Published models of the SD3 family: 38 blocks, 2432 channels, patches of 2.
MAX_BLOCKS = 512
MAX_PATCH = 64
MAX_WIDTH = 2**16


def check_sizes(params: Any) -> None:
    """Refuse an architecture whose description alone would take all memory, or overflow.

    Args:
        params: a dataclass; its whole numbers are counts and widths.

    Raises:
        ValueError: one of them is beyond any model.
    """
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if type(value) is not int:
            continue
        limit = MAX_WIDTH
        if field.name == "depth" or field.name.endswith("_blocks"):
            limit = MAX_BLOCKS
        elif field.name == "patch_size":
            limit = MAX_PATCH
        if not 0 <= value <= limit:
            raise ValueError(f"expected {field.name} of at most {limit}, got {value}")
