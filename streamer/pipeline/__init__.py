"""The room with the threads: receive → decode + reduce → infer → decide → publish.

    source ─► receive ─►▒─► decode+reduce × N ─►▒─► infer ─►▒─► decide ─►▒─► each output its own thread

Every ▒ is a bounded queue. A received message stands in line twice: in the work queue, from which any worker takes,
and in the order queue, from which the infer thread takes them as they arrived, waiting for each to be worked off. So
answers keep the order of arrival whatever the workers do. Starts and ends are barriers: a worker gets one only when
everything before it is finished, and nothing behind it is touched until it is.

    neighbours   what the pipeline asks of sources, analyses, rules and outputs: it imports none of them
    line         a message's place in line, and how much may wait
    stages       the pipeline itself: five stages, start, stop and join
    supervision  once a second: close what is over, say what was lost, raise the stream's own alarms
    publisher    one output, its queue and its thread
    timing       time per stage, latency, rate

The pipeline alone tells the ledger, always in the order of arrival. Clocks: `time.monotonic` for everything but the
wall time that labels results and alarms.

Three classes of failure. A bad message: counted, quarantined, next frame. An output that is down: its thread retries
with back-off, the stream goes on, the alarm "output_<name>_down" fires. Anything else: the pipeline closes and `join`
raises what went wrong.
"""

from streamer.pipeline.line import Limits
from streamer.pipeline.stages import Pipeline

__all__ = ["Limits", "Pipeline"]
