"""Where the client commands connect, and with which key.

From flags, else the environment (HOLDFAST_URL, HOLDFAST_KEY, HOLDFAST_KEY_FILE), else the profile
`~/.config/holdfast/profile.toml` with the lines `url = "…"` and `key = "…"`, else the default port
of this machine without a key.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import sys
import tomllib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from gateway.client import GatewayClient
from node.errors import SettingsError
from node.settings import Secret

DEFAULT_URL = "http://127.0.0.1:7070"

_KEY = re.compile("[!-~]+")
"""What may stand in a header; whether it is a key is for the cluster to say."""

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
    _check_url(chosen)
    key: str | None = None
    if key_file:
        key = _read(key_file)
    elif environment.get("HOLDFAST_KEY"):
        key = environment["HOLDFAST_KEY"]
    elif environment.get("HOLDFAST_KEY_FILE"):
        key = _read(environment["HOLDFAST_KEY_FILE"])
    else:
        key = stored.get("key") or None
    if key is not None and not _KEY.fullmatch(key):
        raise SettingsError(["What was given as API key is not one: a key is one word, hfk_…"])
    return Connection(url=chosen.rstrip("/"), key=Secret(key) if key else None)


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run the asynchronous part of a command; Ctrl-C, SIGTERM and SIGHUP let it clean up."""
    import uvloop  # noqa: PLC0415 - half of what a short command would otherwise need to start

    received: list[int] = []

    async def interruptible() -> _T:
        task = asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
                asyncio.get_running_loop().add_signal_handler(number, end, number)
        return await work()

    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        result = runner.run(interruptible())
    except KeyboardInterrupt:
        _end_by(signal.SIGINT)
    except asyncio.CancelledError:
        if received:
            _end_by(received[0])
        raise
    except BaseException:
        runner.close()
        raise
    runner.close()
    return result


def _end_by(number: int) -> NoReturn:
    """End as shells expect it of an interrupted program: by the signal itself.

    Nothing is waited for any more: a thread that reads a silent standard input can't be stopped.
    """
    print("holdfast: interrupted", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # unless the signal is blocked, this is never reached


def _check_url(text: str) -> None:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or not text.isprintable():
        raise SettingsError([f"{text!r} is not a URL like {DEFAULT_URL}."])


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
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError([f"The key file {path} can't be read: {reason}."]) from error
