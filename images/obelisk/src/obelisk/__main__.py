"""`python -m obelisk`."""

import sys

from obelisk.cli import main

if __name__ == "__main__":
    sys.exit(main())
