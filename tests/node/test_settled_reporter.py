"""What a node reports of its copies: once for each epoch, and until it has got through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata_raft.commands import Command, Failure, ReportSettled, Result
from metadata_raft.errors import NoQuorumError
from node.settled_reporter import RETRY_SECONDS, SettledReporter
from tests.fakes.metadata import FakeMetadata, make_member

OWN = make_member(1).node_id


class CountingMetadata(FakeMetadata):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reports = 0
        self.refusal: Failure | None = None

    async def submit(self, command: Command, **options: object) -> Result:
        if isinstance(command, ReportSettled):
            self.reports += 1
            if self.refusal is not None:
                return self.refusal
        return await super().submit(command, **options)  # type: ignore[arg-type]

    def recorded(self) -> int:
        with self.snapshot() as snapshot:
            return snapshot.members()[0].settled_epoch


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[CountingMetadata]:
    made = CountingMetadata(str(tmp_path / "state.db"))
    await made.bootstrap()
    yield made
    await made.stop()


async def test_an_epoch_is_reported_once(metadata: CountingMetadata) -> None:
    """When all of it is here, not before; a restart doesn't repeat what is recorded."""
    here: list[int | None] = [None]
    reporter = SettledReporter(metadata, OWN, lambda: here[0])
    await reporter.work()
    assert metadata.reports == 0
    here[0] = 1
    for _ in range(3):
        await reporter.work()
    assert (metadata.reports, metadata.recorded()) == (1, 1)
    await SettledReporter(metadata, OWN, lambda: 1).work()
    assert metadata.reports == 1


async def test_a_report_that_is_not_recorded_is_repeated(metadata: CountingMetadata) -> None:
    """No quorum, or a cluster version that knows no reports yet: later again."""
    reporter = SettledReporter(metadata, OWN, lambda: 1)
    metadata.fail_next = [NoQuorumError("no leader")]
    assert await reporter.work() == RETRY_SECONDS
    metadata.refusal = Failure(code="cluster_version_too_old", detail="Version 2 is needed.")
    assert await reporter.work() == RETRY_SECONDS
    assert metadata.recorded() == 0
    metadata.refusal = None
    await reporter.work()
    assert metadata.recorded() == 1
