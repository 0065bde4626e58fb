"""Which addresses are anybody's, and which belong to a machine, a network at home, a company or a cloud."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

# IANA's registries of special addresses, where Python's `is_global` says otherwise or differs by version.
_NOT_PUBLIC_4 = [
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocols' own
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4 (RFC 7526)
]
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")  # all that has been given out (RFC 4291)
_NOT_PUBLIC_6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocols' own, Teredo among them, which leads to an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which leads to an IPv4 address
        "3fff::/20",  # documentation (RFC 9637)
    )
]
# The IPv4 address stands in the last 32 bits.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how networks without IPv4 reach it (RFC 6052)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to no private, local, shared, reserved or multicast range, nor leads to one.

    An address with a zone ("fe80::1%eth0") or that is none at all is not public.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and (ip in _MAPPED or ip in _NAT64):
        ip = IPv4Address(int(ip) & 0xFFFFFFFF)
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC_4)
    return ip.scope_id is None and ip in _PUBLIC_6 and not any(ip in network for network in _NOT_PUBLIC_6)
