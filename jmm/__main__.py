"""`python -m jmm` is the `jmm` command."""

import sys

from jmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
