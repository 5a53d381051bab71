"""Who a client is, and how much of what all share one may take.

A client is an address: its key is everybody's, and what it says of itself costs nothing. Behind a proxy all are one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from starlette.types import Scope


def client_of(scope: Scope) -> str:
    """An address; of IPv6 the network, in which one client may have all addresses."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


class Shares:
    """Of so many places, each client may take at most three quarters, or `one` where that is more: others come, too."""

    def __init__(self, places: int, one: int = 1) -> None:
        self.places, self.share = places, max(places - places // 4, one)
        self.taken = 0
        self._of: Counter[str] = Counter()

    def take(self, client: str, count: int = 1) -> bool:
        """False: there is no room, for this client or for anyone."""
        if self.taken + count > self.places or self._of[client] + count > self.share:
            return False
        self.taken += count
        self._of[client] += count
        return True

    def give_back(self, client: str, count: int = 1) -> None:
        self.taken -= count
        self._of[client] -= count
        if not self._of[client]:
            del self._of[client]
