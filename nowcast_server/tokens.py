"""Bearer tokens: each names a tenant, and a tenant sees only its own jobs. Kept as sha256, compared in constant time."""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self

from nowcast_server.settings import Settings
from protos.errors import Unauthorized

ANONYMOUS: Final = "anonymous"  # the one tenant of a server without tokens
OPERATOR: Final = "operator"  # the tenant whose token reads `/metrics`, which count over all tenants

_ENTRY = re.compile(
    r"(?P<tenant>[A-Za-z0-9][A-Za-z0-9._-]{0,63}):(?:sha256:(?P<hash>[0-9a-fA-F]{64})|(?P<token>[\x21-\x7e]{16,512}))"
)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True)
class Tokens:
    """Who may call: (sha256 of a token, its tenant), of which a tenant may have several. Empty: everyone is `ANONYMOUS`."""

    tenants: tuple[tuple[bytes, str], ...] = ()

    @property
    def names(self) -> set[str]:
        return {tenant for _, tenant in self.tenants}

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """Read lines `tenant:token` or `tenant:sha256:HEX`, and `#` comments; a ValueError names the line, never its content."""
        tenants = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            entry = _ENTRY.fullmatch(line.strip())
            if entry is None:
                wanted = "tenant:token (16 printable characters or more) or tenant:sha256:HEX"
                raise ValueError(f"{source}, line {number}: write {wanted}")
            hashed = bytes.fromhex(entry["hash"]) if entry["hash"] else digest(entry["token"])
            tenants.append((hashed, entry["tenant"]))
        return cls(tuple(tenants))

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Tokens of `token_file` and of `NOWCAST_TOKENS` together; OSError or ValueError if they are unreadable, or none."""
        lines: dict[str, str] = {}
        if settings.tokens is not None:
            lines["NOWCAST_TOKENS"] = settings.tokens.get_secret_value().replace(",", "\n")
        if settings.token_file is not None:
            try:
                lines[str(settings.token_file)] = settings.token_file.read_text(encoding="utf-8-sig")  # Windows puts a mark before
            except UnicodeDecodeError:
                raise ValueError(f"{settings.token_file} is not UTF-8; save it as such") from None
        tenants = [each for source, text in lines.items() for each in cls.parse(text, source=source).tenants]
        if lines and not tenants:
            raise ValueError("tokens are required, but the file holds none, so no client could call this server")
        return cls(tuple(tenants))

    def tenant(self, authorization: str | None) -> str:
        """Whose call it is, by its `Authorization` header; raises Unauthorized if there are tokens, and it holds none of them."""
        if not self.tenants:
            return ANONYMOUS
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("send the header 'Authorization: Bearer TOKEN'", field="authorization")
        given, found = digest(token.strip()), None
        for known, tenant in self.tenants:  # all of them, so that the time says nothing
            if hmac.compare_digest(given, known):
                found = tenant
        if found is None:
            raise Unauthorized("unknown token", field="authorization")
        return found


def check_exposure(settings: Settings, tokens: Tokens) -> None:
    """Refuse to serve strangers by mistake: raise ValueError if others can reach the address, and there are no tokens."""
    if not (tokens.tenants or settings.allow_anonymous or settings.uds is not None or _is_loopback(settings.host)):
        way_out = "give --token-file (see nowcast-server token), or say --allow-anonymous"
        raise ValueError(f"refusing to listen on {settings.host} without tokens: {way_out}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
