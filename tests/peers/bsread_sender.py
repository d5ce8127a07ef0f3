"""A bsread sender that sends pulses when it is told to. Run by the interpreter of .venv-peers.

    bsread_sender.py PORT MODE COMPRESSION ORDER EVERY      MODE: push, pub; ORDER: little, big

Each line of input is a number of pulses to send; their ids are printed as a line of JSON once all of them are on their
way. "new" begins again with the first id. The end of the input stops the sender.

Beside two cameras, of which the second has an image every EVERY pulses, it sends scalars, a text and a vector. Every
pixel is a function of its pulse, row and column (see PIXELS).
"""

from __future__ import annotations

import json
import sys

import numpy as np
from bsread import PUB, PUSH, Sender

FIRST = 20_000_000_000
CAMERAS = {"SAR-CAM1:FPICTURE": ("uint16", (48, 64)), "SAR-CAM2:FPICTURE": ("float32", (7, 5))}


def pixels(pulse: int, name: str) -> np.ndarray:
    dtype, shape = CAMERAS[name]
    y, x = np.indices(shape)
    return ((pulse * 7 + y * 3 + x) % 65521).astype(dtype)


def add_camera(sender: Sender, name: str, order: str, every: int) -> None:
    dtype, (rows, columns) = CAMERAS[name]
    element = np.dtype(dtype).newbyteorder(">" if order == "big" else "<")

    def value(pulse: int) -> np.ndarray | None:
        return None if (pulse - FIRST) % every else pixels(pulse, name).astype(element)

    sender.add_channel(name, value, {"type": dtype, "shape": [columns, rows], "encoding": order})


def main() -> None:
    port, mode, packing, order, every = sys.argv[1:]
    sender = Sender(
        port=int(port),
        address="tcp://127.0.0.1",
        mode=PUB if mode == "pub" else PUSH,
        queue_size=1000,
        start_pulse_id=FIRST,
        data_compression=None if packing == "none" else packing,
        data_header_compression=None if packing == "none" else packing,
    )
    sender.add_channel("SAR-PULSE", lambda pulse: pulse, {"type": "int64", "shape": [1]})
    add_camera(sender, "SAR-CAM1:FPICTURE", order, 1)
    sender.add_channel("SAR-ENERGY", lambda pulse: pulse * 0.5)
    sender.add_channel("SAR-SHUTTER", lambda pulse: pulse % 2 == 0, {"type": "bool", "shape": [1]})
    sender.add_channel("SAR-COMMENT", lambda pulse: f"pulse {pulse}", {"type": "string", "shape": [1]})
    add_camera(sender, "SAR-CAM2:FPICTURE", order, int(every))
    sender.add_channel("SAR-WAVE", lambda pulse: np.arange(30) + pulse, {"type": "int64", "shape": [30]})
    with sender:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "new":
                sender.pulse_id = FIRST
                continue
            sent = range(sender.pulse_id, sender.pulse_id + int(line))
            for _ in sent:
                sender.send()
            print(json.dumps(list(sent)), flush=True)


if __name__ == "__main__":
    main()
