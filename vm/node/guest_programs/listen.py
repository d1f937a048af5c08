"""In one guest: listens to every frame of its card, until it is told to end. Argument: the mark to listen for.

It says how many frames had the mark, and how many its own, which shows that it hears.
"""

import json
import os
import socket
import sys

mark, own = sys.argv[1].encode(), b"its own frame"
END = "/run/escape-end"
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
card.bind(("eth0", 0))
card.settimeout(0.2)
say = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
say.bind(("eth0", 0))
print("listening", flush=True)
say.send(b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + b"\x88\xb5" + own.ljust(50))
heard = {"mark": 0, "control": 0}
while not os.path.exists(END):
    try:
        frame = card.recv(65_536)
    except TimeoutError:
        continue
    heard["mark"] += mark in frame
    heard["control"] += own in frame
print(json.dumps(heard), flush=True)
