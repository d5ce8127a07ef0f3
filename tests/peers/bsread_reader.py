"""Reads pulses with psi-bsread and prints each as a line of JSON. Run by the interpreter of .venv-peers.

bsread_reader.py PORT PULSES
"""

from __future__ import annotations

import json
import sys

import numpy as np
from bsread import PULL, Source


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def main() -> None:
    port, pulses = (int(word) for word in sys.argv[1:])
    with Source(host="127.0.0.1", port=port, mode=PULL, receive_timeout=30_000) as stream:
        for _ in range(pulses):
            message = stream.receive().data
            values = {
                name: {
                    "value": plain(found.value),
                    "dtype": str(getattr(found.value, "dtype", "")),
                    "timestamp": [plain(found.timestamp), plain(found.timestamp_offset)],
                }
                for name, found in message.data.items()
            }
            times = [message.global_timestamp, message.global_timestamp_offset]
            print(json.dumps({"pulse_id": message.pulse_id, "global_timestamp": times, "values": values}), flush=True)


if __name__ == "__main__":
    main()
