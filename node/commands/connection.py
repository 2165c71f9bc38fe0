"""Where the client commands connect, and with which key.

From flags, else the environment (HOLDFAST_URL, HOLDFAST_KEY, HOLDFAST_KEY_FILE), else the profile
`~/.config/holdfast/profile.toml` with the lines `url = "…"` and `key = "…"`, else the default port
of this machine without a key.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tomllib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from gateway.client import GatewayClient
from node.errors import SettingsError
from node.settings import Secret

DEFAULT_URL = "http://127.0.0.1:7070"

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


class Connection(msgspec.Struct, frozen=True):
    url: str
    key: Secret | None

    def client(self) -> GatewayClient:
        return GatewayClient(self.url, self.key.value if self.key else None)


def options(command: _F) -> _F:
    """The options --url, --key-file and --json that client commands share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Machine-readable output."),
        click.option("--key-file", metavar="FILE", help="A file that holds the API key."),
        click.option("--url", metavar="URL", help="A node, as http://host:7070."),
    ):
        command = option(command)
    return command


def connect(url: str | None, key_file: str | None) -> Connection:
    """The connection from flags, this process's environment and profile. Raises SettingsError."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    profile = os.environ.get("HOLDFAST_PROFILE") or os.path.join(home, "holdfast", "profile.toml")
    return resolve(url, key_file, os.environ, Path(profile))


def resolve(
    url: str | None, key_file: str | None, environment: Mapping[str, str], profile: Path
) -> Connection:
    """See the module; `profile` need not exist."""
    stored = _profile(profile)
    chosen = url or environment.get("HOLDFAST_URL") or stored.get("url") or DEFAULT_URL
    if not chosen.startswith(("http://", "https://")):
        raise SettingsError([f"{chosen!r} is not a URL like {DEFAULT_URL}."])
    key: str | None = None
    if key_file:
        key = _read(key_file)
    elif environment.get("HOLDFAST_KEY"):
        key = environment["HOLDFAST_KEY"]
    elif environment.get("HOLDFAST_KEY_FILE"):
        key = _read(environment["HOLDFAST_KEY_FILE"])
    else:
        key = stored.get("key")
    return Connection(url=chosen.rstrip("/"), key=Secret(key) if key else None)


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run the asynchronous part of a command."""
    import uvloop  # noqa: PLC0415 - half of what a short command would otherwise need to start

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _profile(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        mode = path.stat().st_mode
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError([f"The profile {path} can't be used: {error}."]) from error
    if "key" in table and mode & (stat.S_IRGRP | stat.S_IROTH):
        raise SettingsError(
            [f"The profile {path} holds a key and can be read by others: chmod 600 {path}"]
        )
    return {name: str(table[name]) for name in ("url", "key") if name in table}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"The key file {path} can't be read: {error}."]) from error
