"""`python -m offbench.cli`, the same as the command `offbench`."""

import sys

from offbench.cli import main

sys.exit(main())
