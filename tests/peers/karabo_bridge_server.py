"""A Karabo bridge that feeds trains when it is told to. Run by the interpreter of .venv-peers.

    karabo_bridge_server.py SOCKET VERSION LAYOUT ADDRESS      SOCKET: REP, PUSH, PUB; LAYOUT: a key of SHAPES

Prints its address. Each line of input is a number of trains to feed; their ids are printed as a line of JSON once all
of them are on their way. "new" begins again with the first id. The end of the input stops the server.

Every pixel is a function of its train, pulse, module, row and column, modulo 65536:

    ((train * 7 + pulse) * 5 + module * 3 + y) * 2 + x          (camera: one image, pulse and module 0)
"""

from __future__ import annotations

import json
import sys

import numpy as np
from karabo_bridge import ServerInThread

FIRST = 10_000_000_000
SHAPES = {"calibrated": (4, 2, 16, 8), "raw": (2, 8, 16, 4), "camera": (16, 8)}  # raw: module, x, y, pulse
SOURCES = {
    "calibrated": ("SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED", "image.data"),
    "raw": ("SPB_DET_AGIPD1M-1/CAL/APPEND_RAW", "image.data"),
    "camera": ("SPB_IRU_INLINEMIC_CAM:daqOutput", "data.image.pixels"),
}
SLOW = "SA1_XTD2_XGM/XGM/DOOCS"


def pixels(train: int, layout: str) -> np.ndarray:
    if layout == "camera":
        y, x = np.indices(SHAPES[layout])
        pulse = module = np.zeros_like(x)
    elif layout == "raw":
        module, x, y, pulse = np.indices(SHAPES[layout])
    else:
        pulse, module, y, x = np.indices(SHAPES[layout])
    values = (((train * 7 + pulse) * 5 + module * 3 + y) * 2 + x) % 65536
    return values.astype("float32" if layout == "calibrated" else "uint16")


def metadata(source: str, train: int) -> dict[str, object]:
    return {
        "source": source,
        "timestamp": 1526464869.5,
        "timestamp.tid": train,
        "timestamp.sec": "1526464869",
        "timestamp.frac": "500000000000000000",
    }


def feed(server: ServerInThread, train: int, layout: str) -> None:
    source, path = SOURCES[layout]
    data = {
        source: {
            path: pixels(train, layout),
            "image.passport": ["a", "b"],
            "image.cellId": np.arange(4, dtype=np.uint16),
        },
        SLOW: {"pulseEnergy.photonFlux": np.float32(1503.25), "data.intensityTD": np.ones(40, np.float32)},
    }
    server.feed(data, {name: metadata(name, train) for name in data})


def main() -> None:
    socket, version, layout, address = sys.argv[1:]
    train = FIRST
    with ServerInThread(address, sock=socket, protocol_version=version) as server:
        print(server.endpoint, flush=True)
        for line in sys.stdin:
            if line.strip() == "new":
                train = FIRST
                continue
            fed = range(train, train + int(line))
            for one in fed:
                feed(server, one, layout)
            train = fed.stop
            print(json.dumps(list(fed)), flush=True)


if __name__ == "__main__":
    main()
