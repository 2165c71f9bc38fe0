"""Settings: precedence, complete reports of what is wrong, and secrets that stay secret."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from node import settings
from node.errors import SettingsError


def problems(flags: dict[str, object], environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        settings.load(flags, environment)
    return list(raised.value.problems)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """File, environment, flag: the later one of these decides."""
    (tmp_path / "holdfast.toml").write_text('port = 1\npeer_port = 2\nraft_port = 3\nzone = "a"\n')
    loaded = settings.load(
        {"data": str(tmp_path), "raft_port": 30, "zone": None},
        {"HOLDFAST_PEER_PORT": "20", "HOLDFAST_RAFT_PORT": "21", "PATH": "/bin"},
    )
    assert (loaded.port, loaded.peer_port, loaded.raft_port, loaded.zone) == (1, 20, 30, "a")


def test_everything_wrong_is_said_at_once_with_its_source(tmp_path: Path) -> None:
    """One start shows every mistake, each as a sentence that names where the value came from."""
    (tmp_path / "holdfast.toml").write_text('weight = 0\ncolour = "red"\n')
    found = problems(
        {"data": str(tmp_path), "port": 70_000},
        {"HOLDFAST_REPLICAS": "many", "HOLDFAST_ZONES": "x"},
    )
    text = "\n".join(found)
    assert len(found) == 5
    assert "--port must be a port from 1 to 65535, not 70000." in text
    assert "HOLDFAST_REPLICAS must be a number from 1 to 7, not 'many'." in text
    assert "HOLDFAST_ZONES is not a setting of Holdfast." in text
    assert f"weight in {tmp_path}/holdfast.toml must be a whole number" in text
    assert f"colour in {tmp_path}/holdfast.toml is not a setting" in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "No data directory is named"),
        ({"data": "d", "port": 9, "peer_port": 9}, "must differ"),
        ({"data": "d", "listen": "0.0.0.0"}, "advertise must name the host"),
        ({"data": "d", "tls_cert": "/x.pem"}, "belong together"),
        ({"data": "d", "tls_cert": "/x", "tls_key": "/y"}, "names the file /x, which can't be"),
        ({"data": "d", "open_bucket": "b", "listen": "10.0.0.1"}, "is for loopback only"),
        ({"data": "d", "peer_tls": "maybe"}, "must be auto, on or off"),
        ({"data": "d", "zone": "a\nb"}, "must be a name of at most 64 characters, in one line"),
    ],
)
def test_contradictions_are_found_before_anything_opens(
    flags: dict[str, object], sentence: str
) -> None:
    """Values that are right alone but wrong together are refused with a sentence."""
    assert sentence in "\n".join(problems(flags, {}))


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    """The token is read from the file named in the environment, and no text of it contains it."""
    token = tmp_path / "token"
    token.write_text("hft_very_secret\n")
    loaded = settings.load({"data": "d"}, {"HOLDFAST_JOIN_TOKEN_FILE": str(token)})
    assert loaded.join_token is not None
    assert loaded.join_token.value == "hft_very_secret"
    assert "very_secret" not in repr(loaded)
    assert "very_secret" not in f"{loaded.join_token}"


def test_a_secret_may_not_stand_in_the_configuration_file(tmp_path: Path) -> None:
    """Configuration files get copied and committed; secrets in them are refused."""
    (tmp_path / "holdfast.toml").write_text('join_token = "hft_x"\n')
    assert "is a secret" in problems({"data": str(tmp_path)}, {})[0]


def test_tls_between_nodes_is_on_as_soon_as_others_can_connect() -> None:
    """Beyond loopback mutual TLS is the default; on loopback requests are signed."""
    assert not settings.load({"data": "d"}, {}).peer_tls_wanted
    assert settings.load({"data": "d", "listen": "10.0.0.1"}, {}).peer_tls_wanted
    assert settings.load({"data": "d", "peer_tls": "on"}, {}).peer_tls_wanted


def test_addresses_of_ipv6_hosts_are_bracketed() -> None:
    """`host:port` stays unambiguous."""
    loaded = settings.load({"data": "d", "listen": "::1"}, {})
    assert loaded.peer_address == "[::1]:7071"
    assert loaded.client_url == "http://[::1]:7070"


def test_the_guide_has_every_setting_with_its_default() -> None:
    """The table in docs/operations/README.md: no setting is missing, no default is another one."""
    text = (Path(__file__).parents[2] / "docs" / "operations" / "README.md").read_text()
    table = text[text.index("| name | default | what |") :].split("\n\n")[0]
    shown: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[^|]+) \|([^|]*)\|", table, re.MULTILINE):
        named = re.findall(r"`([a-z_]+)`", names)
        each = defaults.strip().split(", ") if len(named) > 1 else [defaults.strip()]
        shown.update(zip(named, each if len(each) == len(named) else each * 3, strict=False))
    fields = {field.name: field.default for field in msgspec.structs.fields(settings.Settings)}
    assert shown.keys() == fields.keys()
    plain = {name: text for name, text in shown.items() if isinstance(fields[name], int)}
    plain.pop("join")
    assert {name: float(text) for name, text in plain.items()} == {
        name: fields[name] for name in plain
    }
