"""Where client commands connect: flags before environment before profile, and keys kept close."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.commands.connection import resolve
from node.errors import SettingsError


def profile(tmp_path: Path, mode: int = 0o600) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text('url = "http://profile:1"\nkey = "from-profile"\n')
    path.chmod(mode)
    return path


def test_flags_win_over_the_environment_and_that_over_the_profile(tmp_path: Path) -> None:
    """Each source is used only where the one before it is silent."""
    key_file = tmp_path / "key"
    key_file.write_text("from-file\n")
    stored = profile(tmp_path)
    environment = {"HOLDFAST_URL": "http://environment:1/", "HOLDFAST_KEY": "from-environment"}
    by_flags = resolve("http://flag:1", str(key_file), environment, stored)
    assert (by_flags.url, by_flags.key and by_flags.key.value) == ("http://flag:1", "from-file")
    by_environment = resolve(None, None, environment, stored)
    assert by_environment.url == "http://environment:1"
    assert by_environment.key is not None
    assert by_environment.key.value == "from-environment"
    by_profile = resolve(None, None, {}, stored)
    assert (by_profile.url, by_profile.key and by_profile.key.value) == (
        "http://profile:1",
        "from-profile",
    )
    from_named_file = resolve(None, None, {"HOLDFAST_KEY_FILE": str(key_file)}, stored)
    assert from_named_file.key is not None
    assert from_named_file.key.value == "from-file"


def test_without_anything_it_is_this_machine_without_a_key(tmp_path: Path) -> None:
    """The default fits a node on the same machine."""
    found = resolve(None, None, {}, tmp_path / "missing.toml")
    assert (found.url, found.key) == ("http://127.0.0.1:7070", None)


def test_a_profile_with_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key that leaked silently is worse than a command that fails."""
    with pytest.raises(SettingsError, match="can be read by others"):
        resolve(None, None, {}, profile(tmp_path, 0o644))


@pytest.mark.parametrize(
    "url",
    [
        "localhost:7070",
        "ftp://x",
        "http://",
        "http://[::1",
        "http://a:b:c",
        "http://a:99999",
        "http://a\n",
    ],
)
def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    """The sentence shows what a URL looks like."""
    with pytest.raises(SettingsError, match="is not a URL like"):
        resolve(url, None, {}, tmp_path / "missing.toml")


def test_a_key_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """Never a request without the key that was meant."""
    with pytest.raises(SettingsError, match="can't be read"):
        resolve(None, str(tmp_path / "no"), {}, tmp_path / "missing.toml")


@pytest.mark.parametrize("text", ["", "two\nlines", "two words", "schlüssel"])
def test_what_cannot_be_a_key_is_refused(tmp_path: Path, text: str) -> None:
    """An empty key file too: never a request without the key that was meant."""
    key_file = tmp_path / "key"
    key_file.write_text(text)
    with pytest.raises(SettingsError, match="is not one"):
        resolve(None, str(key_file), {}, tmp_path / "missing.toml")
