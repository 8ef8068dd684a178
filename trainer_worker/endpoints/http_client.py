"""The HTTP client for a nowcast server: token, certificates, proxy."""

import os
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any

import httpcore2
import httpx2

from trainer_worker.endpoints.deadline import left
from trainer_worker.errors import BadArgument


def http_client(url: str, *, token: str | None, headers: Mapping[str, str] = MappingProxyType({})) -> httpx2.Client:
    """A client for the server at `url`, to be closed.

    Args:
        url: `http://` or `https://`.
        token: bearer token, as read from a file: white space around it is no part of it; none if empty.
        headers: of every call.

    Raises:
        BadArgument: the token cannot be one, or a proxy that the environment names cannot be used.
        OSError: a file that NOWCAST_SERVER_CA or NOWCAST_CLIENT_* names cannot be read, or is no certificate.
        httpx2.InvalidURL: the address is none.
    """
    token = (token or "").strip()
    if token and not (token.isascii() and token.isprintable()):
        raise BadArgument("token", "has a character that no token has")
    given = {**headers, "authorization": f"Bearer {token}"} if token else dict(headers)
    try:
        client = httpx2.Client(base_url=url, headers=given, verify=_verification(), trust_env=trusts_environment(url))
    except ImportError as error:
        detail = "the environment names a SOCKS proxy (ALL_PROXY): pip install 'httpx2[socks]', or unset it"
        raise BadArgument("server", detail) from error
    except ValueError as error:
        raise BadArgument("server", f"a proxy of the environment (ALL_PROXY, HTTPS_PROXY) cannot be used: {error}") from error
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 -- httpx has no option for it
        if isinstance(transport, httpx2.HTTPTransport):
            pool = transport._pool  # noqa: SLF001
            pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001
    return client


def trusts_environment(url: str) -> bool:
    """What httpx takes as `trust_env`: not for this machine's own servers, of which a proxy knows nothing."""
    host = httpx2.URL(url).host
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _verification() -> ssl.SSLContext | bool:
    """What httpx takes as `verify`: the authorities it comes with, or that of the file `NOWCAST_SERVER_CA`; and the certificate to
    show, `NOWCAST_CLIENT_CERT` with its key `NOWCAST_CLIENT_KEY`. All PEM.
    """
    authority, certificate = os.environ.get("NOWCAST_SERVER_CA"), os.environ.get("NOWCAST_CLIENT_CERT")
    if not authority and not certificate:
        return True
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("NOWCAST_CLIENT_KEY"))
    return context


class _Backend(httpcore2.NetworkBackend):
    """Sockets whose waits together end at the deadline of `bounded_by`.

    httpx gives each wait its timeout anew: a server that sends a byte now and then, or one `100 Continue` after the other, holds a
    call for as long as it likes.
    """

    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to one address of the host after the other."""
        error: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in _addresses(host, port, left(timeout)):
            try:
                stream = self._inner.connect_tcp(address, port, _some(left(timeout)), local_address, socket_options)
                return _Stream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as failed:
                error = failed
        raise error

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.connect_unix_socket(path, _some(left(timeout)), socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(left(seconds) or 0.0)


class _Stream(httpcore2.NetworkStream):
    """A connection of `_Backend`."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Raises ReadTimeout at the deadline."""
        left_s = left(timeout)
        if left_s == 0:
            raise httpcore2.ReadTimeout("the deadline passed")
        return self._inner.read(max_bytes, left_s)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Raises WriteTimeout at the deadline, whatever the other side takes meanwhile."""
        connection: socket.socket = self._inner.get_extra_info("socket")
        view = memoryview(buffer).cast("B")
        try:
            while view:
                left_s = left(timeout)
                if left_s == 0:
                    raise httpcore2.WriteTimeout("the deadline passed")
                connection.settimeout(left_s)
                view = view[connection.send(view) :]
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _some(left(timeout))))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _some(timeout_s: float | None) -> float | None:
    """A timeout that is one: 0 would mean not to wait at all, with another error."""
    return None if timeout_s is None else max(timeout_s, 0.001)


def _addresses(host: str, port: int, timeout_s: float | None) -> list[str]:
    """The addresses of a host. The system's resolver knows no timeout, so it is asked in a thread of its own.

    Raises:
        httpcore2.ConnectTimeout, httpcore2.ConnectError: it does not answer in time, or knows none.
    """
    try:
        return [str(ip_address(host))]
    except ValueError:
        found: list[str] = []
        failed: list[OSError] = []

    def ask() -> None:
        try:
            found.extend(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            failed.append(error)

    asking = threading.Thread(target=ask, name="resolve", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if asking.is_alive():
        raise httpcore2.ConnectTimeout(f"no address for {host!r} in time")
    if failed:
        raise httpcore2.ConnectError(str(failed[0])) from failed[0]
    return found
