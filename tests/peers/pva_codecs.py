"""Serves compressed NTNDArrays with pvaccess, compressed by the libraries that areaDetector's NDPluginCodec calls.

    python pva_codecs.py CHANNEL FRAMES.npy

FRAMES.npy: (n, rows, columns). Array number k (from 1) holds frame k − 1; the codecs take turns: none, lz4, bslz4.
Prints "ready" when the channel is there, sends one array per line read from standard input, and ends with the input.
"""

import sys

import bitshuffle
import lz4.block
import numpy as np
import pvaccess
from pvapy.utility.adImageUtility import AdImageUtility


def compressed(frame, codec):
    if codec == "lz4":
        octets = lz4.block.compress(frame.tobytes(), store_size=False)
        return np.frombuffer(octets, np.uint8)
    return bitshuffle.compress_lz4(frame)


def main(channel, path):
    frames = np.load(path)
    _, rows, columns = frames.shape
    server = pvaccess.PvaServer()
    server.addRecord(channel, pvaccess.NtNdArray(), None)
    server.start()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        frame = frames[number - 1]
        codec = (None, "lz4", "bslz4")[(number - 1) % 3]
        if codec is None:
            array = AdImageUtility.generateNtNdArray2D(number, frame)
        else:
            packed = compressed(frame, codec)
            array = AdImageUtility.generateNtNdArray2D(number, packed, columns, rows, frame.dtype, codec)
        server.updateUnchecked(channel, array)
        print("sent", number, flush=True)
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
