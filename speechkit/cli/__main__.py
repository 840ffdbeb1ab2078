"""``python -m speechkit.cli``."""

import sys

from speechkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
