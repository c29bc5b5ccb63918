"""Let `python -m consumers` run the `counterflow` command."""

import sys

from consumers.cli import main

sys.exit(main())
