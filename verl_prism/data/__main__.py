"""`python -m verl_prism.data COMMAND`; see `verl_prism.prepare`."""

import sys

from verl_prism.prepare.command import main

sys.exit(main())
