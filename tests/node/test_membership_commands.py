"""What the commands on members decide by themselves: which node is meant, how far it is, units."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import click
import msgspec
import pytest

from gateway.client import UnreachableError
from gateway.documents import SettingsChange
from node.commands import departure as departures
from node.commands import ring
from node.commands.cluster import parse_changes, shown
from node.commands.departure import Departure, NotYetError, RecalledError, departure, watch
from node.commands.node_names import AmbiguousNodeError, NoSuchNodeError, find_member
from node.commands.nodes import member_rows
from node.commands.quantities import duration, parse_bytes, parse_rate, parse_seconds
from node.commands.ring import describe
from node.data_directory import IDENTITY_NAME, Identity, has_left
from tests.fakes.documents import cluster, member, ring_preview

FIRST, SECOND = "aaaa1111-0000-4000-8000-000000000001", "aaaa2222-0000-4000-8000-000000000002"
MEMBERS = [
    member(FIRST, client_url="http://10.0.0.1:7070"),
    member(SECOND, client_url="http://10.0.0.10:7070"),
]


@pytest.mark.parametrize(
    "text",
    [FIRST, "aaaa1", "AAAA11", "http://10.0.0.1:7070", "http://10.0.0.1:7070/", "10.0.0.1:7070"],
)
def test_a_node_is_named_by_id_beginning_or_url(text: str) -> None:
    """As much of the id as is its own, or the URL with or without the scheme."""
    assert find_member(MEMBERS, text).node_id == FIRST


def test_a_beginning_that_several_share_names_none() -> None:
    """The sentence lists those it could be; the exit code says wrong usage."""
    with pytest.raises(AmbiguousNodeError, match=f"{FIRST}.*{SECOND}") as ambiguous:
        find_member(MEMBERS, "aaaa")
    assert ambiguous.value.exit_code == 2


@pytest.mark.parametrize("text", ["", " ", "bbbb", "10.0.0.1", "http://10.0.0.1", "2222"])
def test_the_beginning_of_a_url_names_no_node(text: str) -> None:
    """10.0.0.1 must never be taken for 10.0.0.10, least of all when it is to be removed."""
    with pytest.raises(NoSuchNodeError) as missing:
        find_member(MEMBERS, text)
    assert missing.value.exit_code == 3


def test_a_departure_is_told_from_the_replicated_state() -> None:
    """Ring, copies with the bytes that are left, group, done: each from what is recorded."""
    leaver = member(FIRST, intent="leave")
    stays = member(SECOND, settled_epoch=4, load={"repair_bytes_left": 700.0})
    other = member("cccc", settled_epoch=5, load={"repair_bytes_left": 0.0})
    assert departure(cluster(leaver, stays, other, epoch=4), FIRST).step == "ring"
    out = msgspec.structs.replace(leaver, in_ring=False)
    copies = departure(cluster(out, stays, other, epoch=5), FIRST)
    assert (copies.step, copies.bytes_left) == ("copies", 700)
    assert "1 of 2" in copies.sentence
    assert "No answer" not in copies.sentence
    dead = msgspec.structs.replace(stays, reachable=False)
    waiting = departure(cluster(out, dead, other, epoch=5), FIRST)
    assert f"No answer from {stays.client_url}." in waiting.sentence
    settled = msgspec.structs.replace(stays, settled_epoch=5)
    group = departure(cluster(out, settled, other, epoch=5), FIRST)
    assert (group.step, "No answer" in group.sentence) == ("group", False)
    dead = msgspec.structs.replace(settled, reachable=False)
    waiting = departure(cluster(out, dead, other, epoch=5), FIRST)
    assert (waiting.step, dead.client_url in waiting.sentence) == ("group", True)
    assert departure(cluster(settled, other, epoch=5), FIRST).step == "done"


def test_a_drained_node_is_done_when_the_others_have_its_copies() -> None:
    """It stays a member, so its record does not go."""
    drained = member(FIRST, intent="drain", in_ring=False)
    behind, settled = member(SECOND, settled_epoch=1), member(SECOND, settled_epoch=2)
    assert departure(cluster(drained, behind, epoch=2), FIRST).step == "copies"
    assert departure(cluster(drained, settled, epoch=2), FIRST).step == "done"


class Looks:
    """Gives one prepared look after another, the last one for ever."""

    def __init__(self, *looks: Departure | Exception) -> None:
        self._looks = list(looks)

    async def __call__(self) -> Departure:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, Exception):
            raise look
        return look


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(departures, "SILENCE_SECONDS", 0.05)


@pytest.mark.usefixtures("_impatient")
async def test_watching_survives_a_node_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is told once; a gap is not the end."""
    # A busy machine must not make the gap a long one.
    monkeypatch.setattr(departures, "SILENCE_SECONDS", 60.0)
    looks = Looks(
        Departure("ring", "ring"),
        UnreachableError("gone"),
        Departure("copies", "copies", 2048),
        Departure("copies", "copies", 1024),
        Departure("done", "gone for good"),
    )
    assert (await watch(looks, timeout_seconds=None)).step == "done"
    assert capsys.readouterr().err.splitlines() == [
        "ring", "copies 2.0 KiB to go.", "gone for good",
    ]  # fmt: skip


@pytest.mark.usefixtures("_impatient")
async def test_watching_ends_when_nobody_answers_or_it_takes_too_long() -> None:
    """Exit code 5: it goes on without us, and the same command watches again."""
    for looks, limit in (
        (Looks(UnreachableError("no connection")), None),
        (Looks(Departure("copies", "copies", 1)), 0.01),
    ):
        async with asyncio.timeout(10):
            with pytest.raises(NotYetError, match="goes on") as later:
                await watch(looks, timeout_seconds=limit, shown=False)
        assert later.value.exit_code == 5


@pytest.mark.usefixtures("_impatient")
async def test_watching_ends_when_the_node_is_called_back() -> None:
    """Somebody's `undrain` is told, and is a failure of what was wanted."""
    recalled = departure(cluster(member(FIRST, intent="stay")), FIRST)
    with pytest.raises(RecalledError, match="back to use"):
        await watch(Looks(recalled), timeout_seconds=None, shown=False)


def test_a_directory_says_that_its_node_has_left(tmp_path: Path) -> None:
    """Only a directory whose identity says so; none, or a damaged one, does not."""
    assert not has_left(str(tmp_path))
    identity = Identity(cluster_id="c", node_id="n", stage="member")
    path = tmp_path / IDENTITY_NAME
    path.write_bytes(msgspec.json.encode(identity))
    assert not has_left(str(tmp_path))
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(identity, stage="left")))
    assert has_left(str(tmp_path))
    path.write_text("{")
    assert not has_left(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("17", 17), ("1kB", 1000), ("1KiB", 1024), ("50MB", 50_000_000),
        ("1.5tb", 1_500_000_000_000), ("64 MiB", 64 << 20), ("2 GiB", 2 << 30),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str, count: int) -> None:
    """MB is a million, MiB is 2^20; no unit is bytes. A rate may end in /s."""
    assert parse_bytes(text) == count
    assert parse_rate(f"{text}/s") == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1 M B", "1e9", "5 parsecs", "0x10", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With a sentence that shows the form."""
    with pytest.raises(click.BadParameter, match="is not a size like"):
        parse_bytes(text)


def test_a_node_without_capacity_is_no_node() -> None:
    """Where a weight of one gigabyte would be previewed otherwise: the least a node can have."""
    assert [ring.weight_of(count) for count in (1, 1_500_000_000, 4 * 10**12)] == [1, 2, 4000]
    with pytest.raises(click.BadParameter, match="without capacity"):
        ring.weight_of(0)


def test_times_have_units() -> None:
    """Both ways, as far as a person wants to know."""
    assert [parse_seconds(text) for text in ("90", "90s", "30m", "12h", "14d", "2w")] == [
        90, 90, 1800, 43_200, 1_209_600, 1_209_600,
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0, 59.6, 3661, 90_061)] == [
        "0 s", "1 min", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip


def test_settings_are_given_by_name_and_unit() -> None:
    """`default` is null; what is not named is not sent."""
    change = parse_changes(["repair_bytes_per_second=50MB", "scrub_interval_seconds=default"])
    assert change == SettingsChange(repair_bytes_per_second=50_000_000, scrub_interval_seconds=None)
    for wrong in (
        "repair=5MB",
        "repair_bytes_per_second",
        "repair_bytes_per_second=soon",
        "scrub_interval_seconds=999999999999999d",
    ):
        with pytest.raises(click.UsageError):
            parse_changes([wrong])
    assert shown("repair_bytes_per_second", 0) == "without limit"
    assert shown("repair_bytes_per_second", 100 << 20) == "100.0 MiB/s"
    assert parse_changes(["repair_bytes_per_second_beside_clients=64MiB"]) == SettingsChange(
        repair_bytes_per_second_beside_clients=64 << 20
    )
    assert shown("repair_bytes_per_second_beside_clients", 24 << 20) == "24.0 MiB/s"
    assert shown("scrub_interval_seconds", 14 * 86_400) == "14 d"
    assert shown("scrub_interval_seconds", 0) == "only when asked for"
    assert shown("repair_bytes_per_second_beside_clients", 0).startswith("as much as a quarter")


def test_a_preview_says_what_moves_and_how_long() -> None:
    """Copies of partitions, bytes, time; and that there will be fewer copies, where it is so."""
    preview = ring_preview("leave", "n1")
    text = " ".join(describe(preview))
    assert "node n1 leaves: 3072 copies" in text
    assert "2.8 GiB" in text
    assert "3 h 10 min" in text
    fewer = msgspec.structs.replace(preview, copies_after=2, seconds=None)
    text = " ".join(describe(fewer))
    assert "2 copies instead of 3" in text
    assert "without a limit" in text


def test_nodes_are_listed_with_what_is_wanted_of_them() -> None:
    """Stage and intent side by side, the leader marked."""
    listed = member_rows(
        cluster(
            member(FIRST, zone="a", stage="leaving", intent="leave", in_ring=False),
            member(SECOND, reachable=False, weight=4000),
        )
    )
    assert listed == [
        (f"{FIRST} *", f"http://{FIRST}.test:7070", "leaving", "leave", "no", "yes", "a", "100"),
        (SECOND, f"http://{SECOND}.test:7070", "voter", "stay", "yes", "NO", "-", "4000"),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_impatient")
async def test_on_a_terminal_the_copies_are_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps stay on the screen, and the bytes that are left shrink to none; bytes that nobody
    knows yet are no error."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    looks = Looks(
        Departure("ring", "Waiting for a ring."),
        Departure("copies", "Copies: 0 of 3.", None),
        Departure("copies", "Copies: 1 of 3.", 4 << 20),
        Departure("copies", "Copies: 2 of 3.", 1 << 20),
        Departure("group", "Leaving the group."),
        Departure("done", "Gone."),
    )
    await watch(looks, timeout_seconds=None)
    shown = terminal.getvalue()
    for sentence in ("Waiting for a ring.", "Copies: 2 of 3.", "Leaving the group.", "Gone."):
        assert sentence in shown
    assert "3.0/4.2 MB" in shown or "3.0/4.0 MiB" in shown
