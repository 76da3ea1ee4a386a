"""`python -m prefopt`, also under `accelerate launch -m` and `torchrun -m`."""

import sys

from prefopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
