"""Rule sets for a machine's own network namespace, as nft's text. Pure."""

from __future__ import annotations

GATE_PORT = 15001
RESOLVER_PORT = 15053
MAX_TRACKED = 4096
"""Flows that the kernel keeps for one machine: its own table has a bound that no namespace can lower."""
_NOBODY = 9  # where UDP goes that is no lookup: its sender is told at once that nobody is there

_GATED = f"""\
# There is no way out of this namespace: whatever a guest says ends at the gate or at the resolver, or is refused.
table inet atoll
delete table inet atoll
table inet atoll {{
	chain tracked {{
		type filter hook prerouting priority mangle; policy accept;
		ct state new ct count over {MAX_TRACKED} drop
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		meta nfproto ipv4 meta l4proto tcp redirect to :{GATE_PORT}
		meta nfproto ipv4 udp dport 53 redirect to :{RESOLVER_PORT}
		meta nfproto ipv4 meta l4proto udp redirect to :{_NOBODY}
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		ct status dnat tcp dport {GATE_PORT} accept
		ct status dnat udp dport {RESOLVER_PORT} accept
		meta nfproto ipv4 meta l4proto udp reject
		meta nfproto ipv4 meta l4proto tcp reject with tcp reset
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
	}}
	chain output {{
		type filter hook output priority filter; policy drop;
		ct state established,related accept
	}}
}}
"""


def gated() -> str:
    """TCP to any address comes to one local port, lookups to another; all else is refused. Replaces what was loaded.

    Only what was redirected is let in, so that nobody talks to the two ports by their own numbers.
    """
    return _GATED
