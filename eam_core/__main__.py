"""Run the command line: python -m eam_core."""

import sys

from .cli import main
from .console import show_any_text

if __name__ == "__main__":
    show_any_text()
    sys.exit(main())
