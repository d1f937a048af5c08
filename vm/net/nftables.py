"""Rule sets for a machine's own network namespace, as nft's text. Pure."""

from __future__ import annotations

CLOSED = """\
# Nothing passes: there is no way out of this namespace and nobody listens in it.
table inet atoll
delete table inet atoll
table inet atoll {
	chain input {
		type filter hook input priority filter; policy drop;
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
	chain output {
		type filter hook output priority filter; policy drop;
	}
}
"""


def closed() -> str:
    """Drop everything, IPv4 and IPv6, in every direction; replaces whatever of ours was loaded before."""
    return CLOSED
