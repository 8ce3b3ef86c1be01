"""How the program starts: Ctrl-C while its modules are imported is one line, as it is later.

`inrjax.cli` says what Ctrl-C means once it is there; until then, nothing was begun.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn


def main() -> int:
    """Run the process's own command line; returns the exit code."""
    try:
        is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_ours:  # else whoever set a handler means something else by it, or it is ignored
            signal.signal(signal.SIGINT, _stop)
        from inrjax import cli

        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()
    except KeyboardInterrupt:
        _stop()


def _stop(*_: Any) -> NoReturn:
    # No exception: a module that is half imported may turn it into another, or swallow it.
    os.write(2, b"inrjax: stopped\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
