"""The messages' door: messages move, nothing is analysed.

simulate   any source to a socket, in any format: a detector for tests and rehearsals
record     what comes over the wire to a file
replay     such a file to sockets, with its own timing
relay      one stream to several readers, undecoded, so that a viewer takes no frames away from the analysis
"""

from streamer.relay.backlog import Delivered
from streamer.relay.destinations import Destination, destination
from streamer.relay.keeping import Kept, record
from streamer.relay.passing import Relayed, relay, replay
from streamer.relay.simulation import Sent, simulate

__all__ = [
    "Delivered",
    "Destination",
    "Kept",
    "Relayed",
    "Sent",
    "destination",
    "record",
    "relay",
    "replay",
    "simulate",
]
