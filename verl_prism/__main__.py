"""`python -m verl_prism COMMAND` is the same as `verl-prism COMMAND`."""

import sys

from verl_prism.cli import main

if __name__ == "__main__":
    sys.exit(main())
