"""What users of OpenAI's Python client see of a running `serve` with the model it ships with.

usage: python client.py BASE_URL KEY [WORD...]

BASE_URL is that of the server, without /v1. Runs the checks whose names hold one of the WORDs, all without any; one line
for each, `N passed, N failed` at the end, and the exit status is 1 when one failed. Needs the package openai. The server
must be no one else's meanwhile: what runs and what was cancelled is read from its /metrics.
"""

import sys
import time
import traceback

from checks import CHECKS, Server
from checks import cancel, chat, completions, faults, load, responses, structured  # noqa: F401, they fill CHECKS


def main(base, key, words):
    server = Server(base, key)
    failed = []
    chosen = [check for check in CHECKS if not words or any(word in check.__name__ for word in words)]
    for check in chosen:
        name, begun = check.__name__.replace("_", " "), time.monotonic()
        try:
            check(server)
            print(f"ok    {name} ({time.monotonic() - begun:.2f} s)", flush=True)
        except Exception:  # noqa: BLE001, whatever it is, it is the check's result
            failed.append(name)
            print(f"FAIL  {name}\n{traceback.format_exc(limit=-4)}", flush=True)
    for name in failed:
        print(f"failed: {name}")
    print(f"{len(chosen) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3:]))
