"""`python -m nolabel` is `nolabel`."""

import sys

from nolabel.cli import main

sys.exit(main())
