"""In a guest, as root: tries every way out, and says what each attempt got, or how it ended.

Argument: JSON of what to try, from vm/node/isolation.py. "tried" of the output is {way: {attempt: {"got": ...} or
{"error": ...}}}.
"""

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

want = json.loads(sys.argv[1])
MARK = want["mark"].encode()
PATIENCE = 4
PUBLIC, PUBLIC6 = "203.0.113.77", "2001:db8::77"
TCP, UDP, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
ASK = b"GET /" + MARK + b" HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
EVERYONE = b"\xff" * 6
IP = b"\x08\x00"
_ECHO_REPLY = 0

type Work = Callable[[], str]
jobs: list[Callable[[], tuple[str, str, dict[str, str]]]] = []


def said(*command: str) -> list[str]:
    """What a program says, line by line."""
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line.strip() for line in text.splitlines()]


def attempt(way: str, what: str) -> Callable[[Work], Work]:
    """Register a function as one attempt."""

    def add(work: Work) -> Work:
        def run() -> tuple[str, str, dict[str, str]]:
            try:
                got = work()
                return way, what, {"got": got} if got else {"error": "no answer"}
            except TimeoutError:
                return way, what, {"error": "no answer"}
            except (OSError, ValueError) as error:
                return way, what, {"error": getattr(error, "strerror", None) or str(error) or type(error).__name__}

        jobs.append(run)
        return work

    return add


def talk(way: str, host: str, port: int, kind: int = TCP, say: bytes = b"", what: str = "") -> None:
    """One that connects (to a name by the guest's resolver), says something, and reads the answer."""

    @attempt(way, what or f"{'tcp' if kind == TCP else 'udp'} {host}:{port}")
    def work() -> str:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
        with socket.socket(family, kind) as s:
            s.settimeout(PATIENCE)
            s.connect(address)
            s.sendall(say or ASK % host.encode())
            return s.recv(4096).decode("latin-1")


def raw(way: str, what: str, protocol: int, host: str, data: bytes) -> None:
    """One that sends a packet of a protocol of its own and waits for an answer of that protocol."""

    @attempt(way, what)
    def work() -> str:
        with socket.socket(socket.AF_INET, RAW, protocol) as s:
            s.settimeout(PATIENCE)
            s.connect((host, 0))
            s.send(data)
            while True:
                got = s.recv(4096)
                # A refusal of something else that was tried there is an ICMP message, too
                if protocol != socket.IPPROTO_ICMP or got[(got[0] & 15) * 4] == _ECHO_REPLY:
                    return got.hex()


def frames(way: str, what: str, *made: bytes) -> None:
    """One that puts frames on the wire as they are; whether they arrive anywhere is heard elsewhere."""

    @attempt(way, what)
    def work() -> str:
        with socket.socket(socket.AF_PACKET, RAW, socket.htons(3)) as s:
            s.bind(("eth0", 0))
            for frame in made:
                s.send(frame)
        return ""


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, target: str, protocol: int, data: bytes, *, place: int = 0, more: bool = False) -> bytes:
    """An IPv4 packet, or the fragment of one that begins at `place`."""
    flags = (0x2000 if more else 0) | place // 8
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 77, flags, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data


def datagram(port: int, data: bytes) -> bytes:
    """A UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", 40_000, port, 8 + len(data), 0) + data


def syn(source: str, target: str, port: int) -> bytes:
    """A TCP segment that asks for a connection."""
    segment = struct.pack("!HHIIBBHHH", 40_001, port, 7, 0, 5 << 4, 2, 8192, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def ask(what: str, server: str, name: bytes, kind: int, over: int = UDP) -> None:
    """One that asks a resolver; what it gets is the answer's data, but for a virtual address, which says nothing."""

    @attempt("dns", what)
    def work() -> str:
        labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
        question = struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
        with socket.socket(socket.AF_INET, over) as s:
            s.settimeout(PATIENCE)
            s.connect((server, 53))
            s.send(question if over == UDP else struct.pack("!H", len(question)) + question)
            answer = s.recv(4096)
        if over == TCP:
            return answer.decode("latin-1")
        answers = struct.unpack("!H", answer[6:8])[0]
        if not answers:
            raise OSError("an empty answer")
        if kind == 1 and answers == 1 and answer[-4:-3] == b"\x64":
            raise OSError("a virtual address")
        return answer.hex()


gateway = " ".join(said("ip", "neigh", "show", "10.0.0.1")).split()
to = bytes.fromhex(gateway[gateway.index("lladdr") + 1].replace(":", "")) if "lladdr" in gateway else EVERYONE
with open("/sys/class/net/eth0/address") as file:
    own = bytes.fromhex(file.read().strip().replace(":", ""))
foreign = b"\x02\xde\xad\xbe\xef\x01"
host = want["addresses"][0] if want["addresses"] else PUBLIC

talk("control", *want["control"])

spellings = ("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "::ffff:169.254.169.254")
clouds = ("169.254.170.2", "168.63.129.16", "100.100.100.200")
for spelling in (*spellings, *clouds, "metadata.google.internal", "metadata", "metadata.example"):
    talk("metadata", spelling, 80)

inside = ("10.0.0.1", "10.255.255.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.1.1", "0.0.0.0")
for address in (*inside, "loopback.example", "inside.example"):
    talk("private", address, want["tcp"])

for address in want["addresses"]:
    for port in (22, want["tcp"]):
        talk("host", address, port)

for port in want["ports"]:
    talk("own ports", "10.0.0.1", port)
    talk("own ports", "10.0.0.1", port, UDP, MARK)
connect = b"CONNECT %s:80 HTTP/1.1\r\n\r\n" % host.encode()
talk("own ports", "10.0.0.1", 80, say=connect, what="CONNECT to the gate")

ask("a long label", "10.0.0.1", MARK.ljust(60, b"x") + b".tunnel.example", 1)
ask("many labels", "10.0.0.1", b".".join([MARK] * 8) + b".tunnel.example", 1)
for kind, record in ((16, "TXT"), (10, "NULL"), (65, "HTTPS"), (28, "AAAA"), (15, "MX"), (255, "ANY")):
    ask(record, "10.0.0.1", MARK + b".tunnel.example", kind)
for server in (PUBLIC, host):
    ask(f"another resolver, {server}", server, MARK + b".tunnel.example", 16)
# Over TCP a resolver is a host like any other, and a public one is allowed
ask("this host's resolver, over TCP", host, MARK + b".tunnel.example", 16, TCP)
talk("dns", host, 853, say=b"\x16\x03\x01", what="this host's resolver, over TLS")

for address in (PUBLIC6, "fe80::1%eth0", "::ffff:192.168.0.1"):
    talk("ipv6", address, want["tcp"])
for address in want["addresses6"]:
    talk("ipv6", f"{address}%eth0" if address.startswith("fe80:") else address, want["tcp"])
for address in (PUBLIC6, "ff02::1%eth0", "ff02::2%eth0"):
    talk("ipv6", address, 443, UDP, MARK)

for address in (PUBLIC, host):
    talk("udp", address, 443, UDP, b"\xc3\0\0\0\1" + MARK.ljust(1200, b"\0"), f"QUIC to {address}")
    talk("udp", address, want["udp"], UDP, MARK)
    talk("udp", address, 123, UDP, b"\x1b" + bytes(47), f"NTP to {address}")

echo = struct.pack("!BBHHH", 8, 0, 0, 7, 7) + MARK
echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
for address in ("10.0.0.1", PUBLIC, host):
    raw("icmp", f"echo to {address}", socket.IPPROTO_ICMP, address, echo)
for protocol, title in ((47, "GRE"), (50, "ESP"), (132, "SCTP"), (4, "IP in IP")):
    raw("icmp", title, protocol, host, MARK)

for source in ("10.0.0.9", "192.168.7.7", host, "127.0.0.1"):
    packets = [
        packet(source, host, 17, datagram(want["udp"], MARK)),
        packet(source, host, 6, syn(source, host, want["tcp"])),
    ]
    frames("spoofed", f"from {source}", *(to + own + IP + one for one in packets))
    frames("spoofed", f"from {source}, with another MAC", *(to + foreign + IP + one for one in packets))

whole = datagram(want["udp"], MARK * 4)
halves = [packet("10.0.0.2", host, 17, whole[:24], more=True), packet("10.0.0.2", host, 17, whole[24:], place=24)]
frames("fragments", "a datagram in two", *(to + own + IP + one for one in halves))
frames("fragments", "the second before the first", *(to + own + IP + one for one in halves[::-1]))
asked = syn("10.0.0.2", host, want["tcp"])
pieces = [packet("10.0.0.2", host, 6, asked[:8], more=True), packet("10.0.0.2", host, 6, asked[8:], place=8)]
frames("fragments", "a TCP segment in two", *(to + own + IP + one for one in pieces))

odd = b"\x88\xb5" + MARK.ljust(50)
frames("neighbour", "broadcast", EVERYONE + own + odd, EVERYONE + foreign + odd)
frames("neighbour", "multicast", b"\x01\x00\x5e\x00\x00\x01" + own + odd, b"\x33\x33\x00\x00\x00\x01" + own + odd)
frames("neighbour", "its MAC, which is ours", own + foreign + odd, own + own + odd)
arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + socket.inet_aton("10.0.0.2")
arp += bytes(6) + socket.inet_aton("10.0.0.3")
frames("neighbour", "ARP", EVERYONE + own + b"\x08\x06" + arp + MARK.ljust(20))
talk("neighbour", "10.0.0.3", 22)

times = []
for name in ("one.example", "two.example", "three.example"):
    began = time.perf_counter()
    try:
        lookup = str(socket.getaddrinfo(name, 443)[0][4][0])
    except OSError as error:
        lookup = str(error)
    times.append(time.perf_counter() - began)
routes = said("ip", "route") + said("ip", "-6", "route", "show", "default")
tried: dict[str, dict[str, dict[str, str]]] = {}
with ThreadPoolExecutor(24) as pool:
    for way, what, outcome in pool.map(lambda job: job(), jobs):
        tried.setdefault(way, {})[what] = outcome
print(json.dumps({"tried": tried, "lookup": lookup, "seconds": sorted(times)[1], "routes": routes}))
