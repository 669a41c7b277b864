"""Run the command line: python -m eam_core."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
