"""Where an endpoint is: its address checked and taken apart, and whether pictures would leave this machine."""

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from .messages import CaptionError

ALLOW_REMOTE = "EAM_ALLOW_REMOTE"
_EXAMPLE = "use one such as http://127.0.0.1:8000"
_HOST = re.compile(r"[\w.-]+|(?=.*:)[0-9a-f:.]+(?:%[\w.-]+)?", re.ASCII)
_VERSION = re.compile(r"/v\d\w*(?:/|\Z)")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Hold an endpoint's address, without any credentials.

    Attributes:
        secure: https instead of http.
        host: a name or a number, without brackets.
        port: of TCP.
        path: what comes before "/chat/completions"; ends in no slash.
        named: whether whoever started this process has named the host, not only allowed hosts in general.
    """

    secure: bool
    host: str
    port: int
    path: str
    named: bool = False

    @property
    def takes_key(self) -> bool:
        """Whether an API key may go there: to this machine, or encrypted to a host that was named."""
        return self.is_local or (self.secure and self.named)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: 127.0.0.0/8, ::1 or localhost, and nothing that only looks like these."""
        return self.host == "localhost" or is_loopback(self.host)

    @property
    def origin(self) -> str:
        """Scheme, host and port, as messages show them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}"

    def __str__(self) -> str:
        return self.origin + self.path


def is_loopback(number: str) -> bool:
    """Say whether an IP address is in 127.0.0.0/8 or is ::1; False for names."""
    try:
        ip = ipaddress.ip_address(number)
    except ValueError:
        return False
    return ip in ipaddress.ip_network("127.0.0.0/8") if ip.version == 4 else ip == ipaddress.IPv6Address("::1")


def parse_address(url: str, *, allow_remote: bool = False) -> Address:
    """Take an endpoint's address apart; "/v1" is added where no version is named.

    Args:
        url: http(s)://HOST[:PORT][/PATH], with or without /v1 and /chat/completions.
        allow_remote: let it be on another machine. The environment variable EAM_ALLOW_REMOTE does so too: for the
            hosts that it lists, with commas between them, or with 1 for all, which then get no API key.

    Raises:
        CaptionError: it is no such address, or one on another machine without leave. No message shows more of it than
            scheme and host, as people put keys into the rest.
    """
    url = url.strip()
    try:
        if re.search(r"[^\x21-\x7e]|\\", url):  # readers disagree about what these mean
            raise ValueError("blanks, backslashes or letters beyond ASCII in it")
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        reason = str(error) if "in it" in str(error) else "something that cannot be read"
        raise CaptionError(f"endpoint: expected an http or https address, got {reason}; {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https"):
        got = f"the scheme {parts.scheme!r}" if parts.scheme and "//" in url else "none"
        raise CaptionError(f"endpoint: expected an http or https address, got {got}; {_EXAMPLE}")
    if "@" in parts.netloc:
        raise CaptionError(
            f"endpoint: expected an address without user name and password, got one for {host!r}; leave them out and "
            "give a key by the environment variable EAM_API_KEY"
        )
    if not _HOST.fullmatch(host):
        raise CaptionError(f"endpoint: expected an address with a host, got {host!r}; {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise CaptionError(
            f"endpoint: expected an address without '?' and '#', got one for {host!r}; leave out what follows them"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    secure = parts.scheme == "https"
    default = 443 if secure else 80
    allowed = os.environ.get(ALLOW_REMOTE, "").strip()
    address = Address(
        secure=secure,
        host=host,
        port=default if port is None else port,
        path=path if _VERSION.search(path) else f"{path}/v1",
        named=allow_remote or host in _hosts(allowed),
    )
    if not (address.is_local or address.named or allowed == "1"):
        raise CaptionError(
            f"endpoint: expected one on this machine (127.0.0.0/8, ::1 or localhost), got {host!r}, to which the "
            f"pictures would leave this machine; if that is wanted, give --allow-remote, or name the host in the "
            f"environment variable {ALLOW_REMOTE} where ComfyUI is started"
        )
    return address


def _hosts(listed: str) -> set[str]:
    """Return the hosts of a list such as "api.example.com, 192.168.1.5"; 0 and 1 say no and all instead."""
    return {entry.strip().strip("[]").lower() for entry in listed.split(",")} - {"", "0", "1"}
