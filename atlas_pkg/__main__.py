"""Start Atlas as `python -m atlas_pkg`; every other way to start it comes through here too.

It only hands the exit status on; arguments, wiring and signals are the business of `main.py`. But
to import that takes a third of a second, and a SIGHUP that comes meanwhile, from somebody who has
just changed the configuration, would end Atlas. So these signals wait from the first line on, and
are heard once it serves.
"""

import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})

from atlas_pkg.main import main  # noqa: E402 - see above

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
