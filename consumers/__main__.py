"""`python -m consumers` is `counterflow`."""

import sys

from consumers.cli import main

sys.exit(main())
