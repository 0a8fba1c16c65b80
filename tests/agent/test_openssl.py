"""What is made once for OpenSSL is made once, whichever threads come first."""

from __future__ import annotations

import subprocess
import sys

_RACE = """
import threading
from agent import openssl

library, calls, somebody_else = openssl._library(), [], threading.Event()

class Watched:
    def __getattr__(self, name):
        return getattr(library, name)

    def CRYPTO_get_ex_new_index(self, *arguments):
        calls.append(arguments)
        somebody_else.set() if len(calls) > 1 else somebody_else.wait(0.5)
        return library.CRYPTO_get_ex_new_index(*arguments)

watched = Watched()
openssl._library = lambda: watched
threads = [threading.Thread(target=openssl._prepared) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(calls))
"""


def test_threads_that_come_first_together_share_one_slot() -> None:
    """A process of its own: what is made once was made in this one."""
    done = subprocess.run([sys.executable, "-c", _RACE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
