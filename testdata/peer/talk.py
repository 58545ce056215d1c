"""A device that talks by itself: talk.py PORT FILE [SECONDS].

Sends the frames of FILE, one in hex a line, one after the other, for ever.
"""
import itertools
import sys
import time

with open(sys.argv[2]) as f:
    frames = [bytes.fromhex(line) for line in f if line.strip() and not line.startswith("#")]
with open(sys.argv[1], "wb", buffering=0) as port:
    for frame in itertools.cycle(frames):
        port.write(frame)
        time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 1.0)
