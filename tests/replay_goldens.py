"""Replays golden files: ``python tests/replay_goldens.py FILE...``.

Prints ``name  max_abs_err  OK|FAIL`` for every reference array. Exit status 1 where one fails or is not computed.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(paths: list[str]) -> int:
    """Replays ``paths`` and returns the exit status."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    from goldens.replay import replay
    from limbeck.errors import LimbeckError

    if not paths:
        print("usage: python tests/replay_goldens.py FILE...", file=sys.stderr)
        return 2
    good = True
    for path in paths:
        if len(paths) > 1:
            print(f"# {path}")
        try:
            for comparison in replay(path):
                print(comparison)
                good &= comparison.ok
        except LimbeckError as error:
            print(f"{path}: {error}", file=sys.stderr)
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
