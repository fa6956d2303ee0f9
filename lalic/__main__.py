"""`python -m lalic` is the command `lalic`."""

import sys

from lalic.cli import main

sys.exit(main())
