"""`python -m jmm` is the `jmm` command."""

import sys

from jmm.cli import main

sys.exit(main())
