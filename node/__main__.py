"""The `holdfast` command. Imports as little as the asked-for command needs."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; ends the process with one of the exit codes in `node/errors.py`."""
    _fill_closed_streams()
    try:
        from node import errors, shadowing  # noqa: PLC0415 - a foreign `node` is to be reported
    except ImportError:
        print(
            f"holdfast: the package `node` at {sys.modules['node'].__file__} is not Holdfast's: "
            "another distribution with that name is installed in this environment. Holdfast is an "
            "application: give it a virtual environment of its own (or pipx, or a container).",
            file=sys.stderr,
        )
        sys.exit(1)
    try:
        shadowing.check()
    except errors.ShadowedError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    from node.commands import run  # noqa: PLC0415 - only after the check

    sys.exit(run())


def _fill_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed (`holdfast … >&-`, some supervisors).

    The next file opened would get that number, and whatever is printed would end up in it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # What Python found closed is None: it opened its streams before.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    main()
