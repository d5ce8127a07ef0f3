"""What `tools/bench.py` measures, one file per sub-command. Every answer of ours is compared with every peer's.

measure    two contestants in turn, ratios with spread, the machine's name, lines of JSON or text
graph      the reduction as an ONNX graph: what a GPU makes of raw frames
frames     the simulated SAXS frame, eight different ones, and their messages
sender     a detector in a process of its own: encoded messages on a PUSH socket
loop       the same work as a beamline would write it today, in one loop
"""
