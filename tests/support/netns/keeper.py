"""Ends what a dead run left inside its namespaces: it waits for its standard input to close, which happens even when
the test's process is killed, and then kills every process inside. The namespaces go with the last of them.

    python -m tests.support.netns.keeper DESCRIPTOR…
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from tests.support.netns.namespaces import Namespace, end_inside
from tests.support.processes import ROOT


class Keeper:
    """Watches over these namespaces from a process of its own."""

    def __init__(self, namespaces: Sequence[Namespace]) -> None:
        descriptors = [each.descriptor for each in namespaces]
        words = [sys.executable, "-m", "tests.support.netns.keeper", *map(str, descriptors)]
        # A session of its own: what is typed to end the tests, or kills their group, does not reach it.
        self._process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, pass_fds=descriptors, start_new_session=True
        )

    def dismiss(self) -> None:
        """Have it end what is inside, and end itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0


def main(words: Sequence[str]) -> None:
    inodes = [os.fstat(int(word)).st_ino for word in words]
    sys.stdin.read()
    end_inside(inodes)


if __name__ == "__main__":
    main(sys.argv[1:])
