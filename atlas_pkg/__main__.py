"""Start Atlas as `python -m atlas_pkg`.

It only hands the exit status on; arguments, wiring and signals are the business of `main.py`.
From a checkout, `python atlas.py` does the same and also says what to install when one of the
two run-time packages is missing.
"""

import sys

from atlas_pkg.main import main

if __name__ == "__main__":
    sys.exit(main())
