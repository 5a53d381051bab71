"""What a server may be told, and how much a client may send it. Knows nothing about HTTP."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from smallthinker.errors import RequestError
from smallthinker.generation.constraints import GRAMMAR_BYTES_PER_TOKEN

MIB = 1 << 20
# Grammars, requests and answers at work beside the bodies, and what the libraries allocate once they are used.
WORKING_BYTES = 24 * MIB


@dataclass(frozen=True)
class Limits:
    """How much of each a client may send; more is refused before anything is computed, with a 4xx, or with a 503 where
    it is all clients' requests together.

    requests: under way at once. connections: open at once, fewer where the process may open fewer files. idle_sec: for
    the head of a request to arrive, from the moment at which it may. body_sec: for a body to arrive. stalled_sec: for a
    client to read any of what it has been sent. body_bytes of one, bodies_bytes of all that are being received or
    answered. schema_*: of a JSON schema, or of all tools together.
    """

    requests: int = 256
    connections: int = 512
    idle_sec: float = 15.0
    stalled_sec: float = 60.0
    body_bytes: int = MIB
    bodies_bytes: int = 16 * MIB
    body_sec: float = 30.0
    messages: int = 2048
    prompts: int = 16
    inputs: int = 2048
    choices: int = 16
    stops: int = 16
    stop_characters: int = 256
    logit_biases: int = 1024
    tools: int = 64
    schema_bytes: int = 64 * 1024
    schema_nodes: int = 4096
    schema_depth: int = 32


@dataclass(frozen=True)
class Settings:
    """host: where it listens. api_key: what clients must show; None asks for nothing. allowed_hosts: names that the
    Host header may have beside IP addresses, localhost and `host`. cors: origins of other sites whose pages may call.
    timeout_sec: the longest that an answer may take, waiting included; a request may ask for less."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    cors: tuple[str, ...] = ()
    timeout_sec: float = 3600.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises RequestError, naming the option."""
        if self.api_key is None and not is_loopback(self.host):
            raise RequestError(
                f"host: everyone who can reach {self.host} could use the model; give `api_key`, or listen on 127.0.0.1"
            )
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.strip()):
            raise RequestError("api_key: expected a text of ASCII characters, found none or others")
        if not self.timeout_sec > 0:
            raise RequestError(f"timeout_sec: expected seconds above 0, found {self.timeout_sec}")
        for origin in self.cors:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise RequestError(
                    f"cors: expected an origin such as http://localhost:3000, without a path, found {origin!r}"
                )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reserved_bytes(limits: Limits, vocab_size: int) -> int:
    """What a server may come to hold beside its model: to be left free of the budget."""
    return limits.bodies_bytes + working_bytes(vocab_size)


def working_bytes(vocab_size: int) -> int:
    """Of that, what isn't clients' bodies."""
    return WORKING_BYTES + GRAMMAR_BYTES_PER_TOKEN * vocab_size
