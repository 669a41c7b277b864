"""How Hypothesis breaks good inputs: bytes changed here and there, and JSON with other values in it."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = (0, 1, -1, 2, 3, 64, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
_TEXTS = (
    "", ".", "..", "../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "con", "a\nb", "\x00", "\x1b[2J", "\u202e",
    "\ud800", "x" * 300, "%s%n", "<script>", "{", "[" * 50, "x.safetensors", "../x.safetensors", "x.bin", "F64", "F4",
    "[", "*" * 30, "[!a-", "?" * 40, "1.png", "sub/1.png", "\U0001f600", "e\u0301", "NaN", "1e999",
)  # fmt: skip
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(_TEXTS),
    st.text(max_size=20),
)
values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
"""Any JSON."""


def broken_bytes(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Change good bytes in a few places, cut them off, or take any."""
    changes = st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1), st.integers(0, 2**32)), min_size=1, max_size=8)
    changed = st.builds(_changed, st.sampled_from(samples), changes, st.sampled_from(samples))
    return changed | st.binary(max_size=200)


def _changed(data: bytes, changes: list[tuple[int, float, int]], other: bytes) -> bytes:
    for kind, share, number in changes:
        place = int(share * len(data))
        if kind == 0:  # one byte
            data = data[:place] + bytes([number % 256]) + data[place + 1 :]
        elif kind == 1:  # a number, either way round
            bytes_ = _NUMBERS[number % len(_NUMBERS)] % 2**32
            data = data[:place] + bytes_.to_bytes(4, "big" if number % 2 else "little") + data[place + 4 :]
        elif kind == 2:  # a part gone
            data = data[:place] + data[place + number % 64 :]
        elif kind == 3:  # a part twice
            data = data[: place + number % 256] + data[place:]
        elif kind == 4:  # the rest gone
            data = data[:place]
        elif kind == 5:  # the rest of another one
            data = data[:place] + other[int(share * len(other)) :]
        else:  # one bit
            data = data[:place] + bytes(byte ^ 1 << number % 8 for byte in data[place : place + 1]) + data[place + 1 :]
    return data


def broken_json(samples: Sequence[bytes], lines: bool = False) -> st.SearchStrategy[bytes]:
    """Put other values at a few places of good JSON, whole or in lines; or take any JSON, or none."""
    joined = [b"[" + b",".join(each.splitlines()) + b"]" if lines else each for each in samples]
    changes = st.lists(st.tuples(st.integers(0, 2**32), values), min_size=1, max_size=4)
    changed = st.builds(_replaced, st.sampled_from(joined), changes)

    def write(value: Any) -> bytes:
        if lines and isinstance(value, list):
            return b"\n".join(json.dumps(line).encode() for line in value) + b"\n"
        return json.dumps(value).encode()

    return st.one_of(changed.map(write), changed.map(write), values.map(write), broken_bytes(samples))


def _replaced(text: bytes, changes: list[tuple[int, Any]]) -> Any:
    good = json.loads(text)
    for number, value in changes:
        places = list(_places(good))
        if not places:
            return value
        holder, key = places[number % len(places)]
        if number % 7 == 0:
            del holder[key]
        elif number % 7 == 1 and isinstance(holder, dict):
            holder[str(value)] = holder.pop(key)
        else:
            holder[key] = value
    return good


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
