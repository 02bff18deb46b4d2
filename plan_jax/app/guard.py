"""The guard before the app: which requests come in, and the headers that go out."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Hosts:
  """Names under which the app answers: those of the loopback, and of the host it listens on.

  Another site's name that leads here (DNS rebinding) is none of them.

  Attributes:
    host: it listens on; "0.0.0.0" and "::" are all of the machine's addresses.
  """

  host: str

  @property
  def is_loopback(self) -> bool:
    """True if nobody from outside of the machine can connect."""
    return self.host in _LOOPBACK or (_is_address(self.host) and self._address.is_loopback)

  @property
  def _address(self):
    return ipaddress.ip_address(self.host)

  def __contains__(self, name: str | None) -> bool:
    if name in (*_LOOPBACK, self.host.lower()):
      return True
    if not _is_address(self.host) or name is None:
      return False
    if not self._address.is_unspecified:  # browsers write addresses in their short form
      return _is_address(name) and ipaddress.ip_address(name) == self._address
    return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


class Guard:
  """Middleware that refuses requests to foreign names and POSTs from other sites' pages."""

  def __init__(self, app: ASGIApp, hosts: Hosts):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request, or has the app answer it."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(_HEADERS)
      await send(message)

    problem = self._problem(scope["method"], Headers(scope=scope))
    app = JSONResponse({"error": problem}, 403) if problem else self._app
    await app(scope, receive, send_with_headers)

  def _problem(self, method: str, headers: Headers) -> str:
    """Says why a request is refused; empty where it is not."""
    host = headers.get("host", "")
    if _host_name(f"//{host}") not in self._hosts:
      return "the app does not answer under this name: open the address that it logged"
    origin = headers.get("origin")  # browsers send it with every POST
    if method not in ("GET", "HEAD") and origin not in (None, f"http://{host}"):
      return "the request comes from another site's page"
    return ""


def _host_name(url: str) -> str | None:
  try:
    return urlsplit(url).hostname
  except ValueError:
    return None
