"""Which servers are reached directly, whatever proxy the environment names."""

from ipaddress import ip_address

import httpx2


def trusts_environment(url: str) -> bool:
    """What httpx takes as `trust_env`: not for this machine's own servers, of which a proxy knows nothing."""
    host = httpx2.URL(url).host
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
