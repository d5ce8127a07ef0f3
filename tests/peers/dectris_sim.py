"""Runs in the environment of the testers: libertem-dectris' DectrisSim sends one series, then waits to be ended.

dectris_sim.py URI FRAMES. It binds PUSH and waits for a reader. Every pixel of frame k is k.
"""

import sys

from libertem_dectris import DectrisSim

uri, frames = sys.argv[1], int(sys.argv[2])
detector = DectrisSim.new_mocked(uri, frames)
detector.send_headers()
detector.send_frames()
detector.send_footer()
print("sent", flush=True)
sys.stdin.read()  # what waits in the socket would be gone with the process
