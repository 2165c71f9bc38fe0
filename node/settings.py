"""The settings of one node process: read once at start, checked in full, then never change.

A value comes from `holdfast.toml`, is overridden by `HOLDFAST_<NAME>` in the environment, and that
by a flag of `holdfast serve`. A secret may also stand in a file named by `HOLDFAST_<NAME>_FILE`, so
that it shows in no process list. Everything wrong is reported at once, one sentence each, before
anything is opened. What must be the same on all nodes (replicas after the first start, buckets,
keys) is not here but in the replicated state.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from node.errors import SettingsError

MIB = 1024 * 1024
CONFIG_NAME = "holdfast.toml"
ENVIRONMENT_PREFIX = "HOLDFAST_"

_CLIENT_ONLY = frozenset({"URL", "KEY", "KEY_FILE", "PROFILE", "CONFIG", "PYTHON"})
"""Variables with our prefix that belong to the client commands or the scripts."""


class Secret(msgspec.Struct, frozen=True):
    """A value that never shows in a log line, a traceback or a `repr`."""

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__


_Port = Annotated[int, msgspec.Meta(ge=1, le=65535, description="a port from 1 to 65535")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For the table see docs/operations/README.md; `description` ends the sentence "… must be"."""

    data: Annotated[str, msgspec.Meta(min_length=1, description="the path of a directory")]
    listen: Annotated[str, msgspec.Meta(min_length=1, description="an address to listen on")] = (
        "127.0.0.1"
    )
    port: _Port = 7070
    peer_port: _Port = 7071
    raft_port: _Port = 7072
    advertise: Annotated[str, msgspec.Meta(description="a host that the others can reach")] = ""
    """The host under which clients and other nodes reach this one; `listen` where empty."""
    zone: Annotated[
        str,
        msgspec.Meta(
            max_length=64,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="a name of at most 64 characters, in one line",
        ),
    ] = ""
    weight: Annotated[
        int, msgspec.Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1,000,000")
    ] = 100
    replicas: Annotated[int, msgspec.Meta(ge=1, le=7, description="a number from 1 to 7")] = 3
    """Copies of each chunk; counts at the first start of a new cluster only."""
    tls_cert: Annotated[str, msgspec.Meta(description="the path of a PEM file")] = ""
    tls_key: Annotated[str, msgspec.Meta(description="the path of a PEM file")] = ""
    peer_tls: Annotated[
        str, msgspec.Meta(pattern="^(auto|on|off)$", description="auto, on or off")
    ] = "auto"
    """Mutual TLS between nodes; `auto`: as soon as the node listens beyond loopback."""
    join: Annotated[bool, msgspec.Meta(description="true or false")] = False
    join_token: Secret | None = None
    admin_key_file: Annotated[str, msgspec.Meta(description="the path of a file")] = ""
    """Where the first admin key is written, instead of being printed."""
    open_bucket: Annotated[str, msgspec.Meta(description="the name of a bucket")] = ""
    """A bucket that a new cluster opens to everybody; loopback only."""
    chunk_size_bytes: Annotated[
        int,
        msgspec.Meta(ge=4096, le=8 * MIB, description="a number of bytes from 4096 to 8388608"),
    ] = 8 * MIB
    buffer_budget_bytes: Annotated[
        int, msgspec.Meta(ge=64 * MIB, description="a number of bytes, at least 67108864")
    ] = 256 * MIB
    chunk_quota_bytes: Annotated[
        int, msgspec.Meta(ge=0, description="a number of bytes, or 0 for no quota")
    ] = 0
    """What this node's chunks may occupy on its disk."""
    disk_reserve_bytes: Annotated[
        int, msgspec.Meta(ge=64 * MIB, description="a number of bytes, at least 67108864")
    ] = 256 * MIB
    """Free space that chunks leave alone: Raft takes ordinary commands down to 32 MiB only, and the
    index grows too."""
    generation_interval_seconds: Annotated[
        float, msgspec.Meta(ge=0.05, description="a number of seconds, at least 0.05")
    ] = 1800.0
    reclaim_grace_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=86_400, description="a number of seconds up to 86400")
    ] = 60.0
    """What was deleted less than this ago stays for downloads that are under way."""
    voter_gone_seconds: Annotated[
        float, msgspec.Meta(ge=1, le=86_400, description="a number of seconds from 1 to 86400")
    ] = 300.0
    """After this long without an answer a voter gives its vote to a learner, if there is one."""
    drain_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=3600, description="a number of seconds up to 3600")
    ] = 20.0
    """How long a stopping node lets requests finish."""
    log_format: Annotated[
        str, msgspec.Meta(pattern="^(text|json)$", description="text or json")
    ] = "text"
    log_level: Annotated[
        str,
        msgspec.Meta(
            pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
        ),
    ] = "info"

    @property
    def advertised_host(self) -> str:
        return self.advertise or self.listen

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the node."""
        return is_loopback(self.listen)

    @property
    def client_url(self) -> str:
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://{authority(self.advertised_host, self.port)}"

    @property
    def peer_address(self) -> str:
        return authority(self.advertised_host, self.peer_port)

    @property
    def raft_address(self) -> str:
        return authority(self.advertised_host, self.raft_port)

    @property
    def peer_tls_wanted(self) -> bool:
        return self.peer_tls == "on" or (self.peer_tls == "auto" and not self.loopback)


def authority(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    *,
    config_path: str | None = None,
) -> Settings:
    """Merge file, environment and flags into checked settings.

    `flags` holds what the operator gave (None: not given). The file is `config_path`, or
    `HOLDFAST_CONFIG`, or `holdfast.toml` in the data directory where there is one. Raises
    SettingsError with every problem found.
    """
    problems: list[str] = []
    given = {name: value for name, value in flags.items() if value is not None}
    from_environment = _read_environment(environment, problems)
    named = config_path or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    directory = given.get("data") or from_environment.get("data", ("", ""))[0]
    if named is None and directory:
        beside = os.path.join(str(directory), CONFIG_NAME)
        named = beside if os.path.exists(beside) else None
    merged: dict[str, tuple[object, str]] = {}
    if named is not None:
        merged.update(_read_file(named, problems))
    merged.update(from_environment)
    for name, value in given.items():
        merged[name] = (value, "--" + name.replace("_", "-"))
    values = _convert(merged, problems)
    if "data" not in merged:
        problems.append("No data directory is named: give --data DIR (or HOLDFAST_DATA).")
    if not problems:
        settings = Settings(**values)
        problems.extend(_contradictions(settings))
        if not problems:
            return settings
    raise SettingsError(problems)


def _read_environment(
    environment: Mapping[str, str], problems: list[str]
) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name in _CLIENT_ONLY:
            continue
        if name.endswith("_FILE") and name.removesuffix("_FILE").lower() in _SECRETS:
            try:
                with open(value, encoding="utf-8") as file:
                    text = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{variable} names the file {value}, which can't be read: {error}.")
                continue
            found[name.removesuffix("_FILE").lower()] = (text, variable)
        elif name.lower() in _FIELDS:
            found[name.lower()] = (value, variable)
        else:
            problems.append(f"{variable} is not a setting of Holdfast.")
    return found


def _read_file(path: str, problems: list[str]) -> dict[str, tuple[object, str]]:
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        problems.append(f"The configuration file {path} can't be read: {error.strerror}.")
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(f"The configuration file {path} is not valid TOML: {error}.")
        return {}
    found: dict[str, tuple[object, str]] = {}
    for name, value in table.items():
        if name in _SECRETS:
            problems.append(
                f"{name} is a secret and may not stand in {path}; "
                f"use {ENVIRONMENT_PREFIX}{name.upper()}_FILE."
            )
        elif name in _FIELDS:
            found[name] = (value, f"{name} in {path}")
        else:
            problems.append(f"{name} in {path} is not a setting of Holdfast.")
    return found


def _convert(merged: Mapping[str, tuple[object, str]], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (value, source) in merged.items():
        if name not in _FIELDS:
            continue
        if name in _SECRETS:
            values[name] = Secret(str(value))
            continue
        try:
            values[name] = msgspec.convert(value, _FIELDS[name], strict=False)
        except msgspec.ValidationError:
            problems.append(f"{source} must be {_description(name)}, not {value!r}.")
    return values


def _contradictions(settings: Settings) -> list[str]:
    """What no single setting shows: values that do not fit together."""
    problems: list[str] = []
    ports = [settings.port, settings.peer_port, settings.raft_port]
    if len(set(ports)) < len(ports):
        problems.append(
            f"port, peer_port and raft_port must differ; they are {ports[0]}, {ports[1]} and "
            f"{ports[2]}."
        )
    if settings.listen in {"0.0.0.0", "::"} and not settings.advertise:
        problems.append(
            f"listen is {settings.listen}, which no other machine can connect to: "
            "advertise must name the host they reach this node under."
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        problems.append("tls_cert and tls_key belong together: give both or neither.")
    problems.extend(
        f"{name} names the file {path}, which can't be read."
        for name, path in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key))
        if path and not os.access(path, os.R_OK)
    )
    if settings.open_bucket and not settings.loopback:
        problems.append(
            f"open_bucket lets anybody write, and is for loopback only; listen is "
            f"{settings.listen}."
        )
    return problems


def _description(name: str) -> str:
    for part in typing.get_args(_FIELDS[name]):
        if isinstance(part, msgspec.Meta) and part.description:
            return part.description
    raise AssertionError(f"the setting {name} has no description")


_FIELDS: dict[str, Any] = typing.get_type_hints(Settings, include_extras=True)
_SECRETS = frozenset({"join_token"})
