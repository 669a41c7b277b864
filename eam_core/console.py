"""Standard output that shows any file name, whatever encoding a terminal or a pipe has."""

import sys


def show_any_text() -> None:
    r"""Write what an encoding lacks as \xfc, \u4e2d, ...: a name must not end a run with an UnicodeEncodeError.

    Windows' pipes have the encoding of the country, and minimal containers ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # None without a console, other objects in notebooks
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
