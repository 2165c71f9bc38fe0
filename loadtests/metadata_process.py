"""One member of a metadata group in a process of its own, driven by lines of JSON.

The benchmark writes a request a line to standard input and reads an answer a line from standard
output. The member is the product's `MetadataGroup` with its real journal, state machine and syncs;
the process only adds callers. It ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time

import msgspec
import uvloop
from blake3 import blake3

from loadtests.measurements import percentile
from metadata_raft.commands import (
    SYSTEM,
    AdmitMember,
    BootstrapCluster,
    Command,
    CreateJoinToken,
    Failure,
    PutFile,
)
from metadata_raft.errors import MetadataError
from metadata_raft.group import MetadataGroup
from metadata_raft.records import MemberAddress
from metadata_raft.settings import RaftSettings
from ring.members import Member

BUCKET = "bench"
CLUSTER_ID = "8f7f7a55-5c62-4b37-9c3f-000000000000"
HOST = "127.0.0.1"
_CLUSTER_KEY = bytes(range(32))
_CHUNK_SIZE = 1 << 20
_FILES_PER_FOLDER = 1000
_SECRET_HASH = bytes(32)
_PAUSE_SECONDS = 0.005
"""Between attempts while there is no leader; short, as it adds to the time of a fail-over."""


class RefusedError(Exception):
    """The state machine refused a command of the benchmark; names command, code and detail."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first line: who this member is. The sponsor is None for the first one."""

    node_id: str
    directory: str
    port: int
    sponsor: MemberAddress | None = None


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Make another node a member of the cluster; it becomes learner and voter by itself."""

    node_id: str
    port: int


class Commit(msgspec.Struct, frozen=True, tag=True):
    """Commit files with so many submissions outstanding, for a time or up to a number."""

    run: str
    """The first part of every path; each run has its own."""
    outstanding: int
    seconds: float = 3600.0
    files: int = sys.maxsize


class StartWriting(msgspec.Struct, frozen=True, tag=True):
    """Begin to commit one file after the other, whatever happens, noting when each was done."""

    run: str


class StopWriting(msgspec.Struct, frozen=True, tag=True):
    """Stop it; answers with the times."""


class Barrier(msgspec.Struct, frozen=True, tag=True):
    """Answer when a linearizable read succeeds here."""

    timeout_seconds: float = 60.0


class Checkpoint(msgspec.Struct, frozen=True, tag=True):
    """Compact the journal now."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """Ask for what this member knows of the group."""


Request = Start | Admit | Commit | StartWriting | StopWriting | Barrier | Checkpoint | Status


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a request was answered; what does not apply stands at its default."""

    error: str = ""
    files: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    times: list[float] = []
    """Of CLOCK_MONOTONIC, which all processes of a machine share."""
    role: str = ""
    term: int = 0
    applied_index: int = 0
    voters: int = 0


class MemberProcess:
    """Answers the requests."""

    def __init__(self) -> None:
        self._group: MetadataGroup | None = None
        self._writer: asyncio.Task[None] | None = None
        self._times: list[float] = []

    async def answer(self, request: Request) -> Answer:
        """Carry out one request. Raises what the group raises."""
        match request:
            case Start():
                await self._start(request)
            case Admit():
                await self._admit(request)
            case Commit():
                return await self._commit(request)
            case StartWriting():
                self._times = []
                self._writer = asyncio.create_task(self._keep_writing(request.run))
            case StopWriting():
                assert self._writer is not None
                self._writer.cancel()
                return Answer(times=self._times)
            case Barrier():
                await self._barrier(request)
            case Checkpoint():
                await self.group.checkpoint()
            case Status():
                status = self.group.status()
                return Answer(
                    role=status.role,
                    term=status.term,
                    applied_index=self.group.applied().index,
                    voters=len(status.voters),
                )
        return Answer()

    @property
    def group(self) -> MetadataGroup:
        assert self._group is not None, "the first request is Start"
        return self._group

    async def stop(self) -> None:
        if self._group is not None:
            await self._group.stop()

    # --- membership --------------------------------------------------------------------------

    async def _start(self, request: Start) -> None:
        fresh = _make_directory(request.directory)
        self._group = MetadataGroup(
            RaftSettings(
                node_id=request.node_id,
                cluster_id=CLUSTER_ID,
                directory=request.directory,
                listen_host=HOST,
                listen_port=request.port,
                cluster_key=_CLUSTER_KEY,
                bootstrap=request.sponsor is None,
                seeds=() if request.sponsor is None else (request.sponsor,),
            )
        )
        await self._group.start()
        if fresh and request.sponsor is None:
            await self._submit(
                BootstrapCluster(
                    cluster_id=CLUSTER_ID,
                    member=_member(request.node_id, request.port),
                    replicas=3,
                    admin_key_id="bench",
                    admin_secret_hash=bytes(32),
                    open_bucket=BUCKET,
                )
            )

    async def _admit(self, request: Admit) -> None:
        token = f"token of {request.node_id}"
        await self._submit(CreateJoinToken(token_id=token, secret_hash=_SECRET_HASH, actor=SYSTEM))
        await self._submit(
            AdmitMember(
                token_id=token,
                secret_hash=_SECRET_HASH,
                member=_member(request.node_id, request.port),
            )
        )

    async def _barrier(self, request: Barrier) -> None:
        """A barrier gives up within a second by design; ask until the limit."""
        deadline = time.monotonic() + request.timeout_seconds
        while True:
            try:
                await self.group.barrier()
            except MetadataError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    # --- commits -----------------------------------------------------------------------------

    async def _commit(self, request: Commit) -> Answer:
        numbers = iter(range(request.files))
        latencies: list[float] = []
        began = time.perf_counter()
        deadline = began + request.seconds

        async def work() -> None:
            for number in numbers:
                submitted = time.perf_counter()
                if submitted > deadline:
                    return
                await self._submit(self._put(request.run, number))
                latencies.append(time.perf_counter() - submitted)

        async with asyncio.TaskGroup() as workers:
            for _ in range(request.outstanding):
                workers.create_task(work())
        seconds = time.perf_counter() - began
        return Answer(
            files=len(latencies),
            seconds=seconds,
            p50_ms=percentile(latencies, 0.50) * 1000,
            p99_ms=percentile(latencies, 0.99) * 1000,
        )

    async def _keep_writing(self, run: str) -> None:
        for number in itertools.count():
            command = self._put(run, number)
            while True:
                try:
                    await self._submit(command)
                except MetadataError:
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    break
            self._times.append(time.monotonic())

    def _put(self, run: str, number: int) -> PutFile:
        """A new file of one chunk that no other file has."""
        applied = self.group.applied()
        chunk_id = blake3(f"{run} {number}".encode()).digest()
        return PutFile(
            bucket=BUCKET,
            path=f"{run}/{number // _FILES_PER_FOLDER:04}/{number:07}.bin",
            actor=SYSTEM,
            size_bytes=_CHUNK_SIZE,
            etag=chunk_id.hex(),
            chunks=chunk_id + _CHUNK_SIZE.to_bytes(4, "little"),
            chunking=8 * _CHUNK_SIZE,
            generation=applied.generation,
            oldest_epoch=applied.epoch,
            content_checksum=chunk_id,
        )

    async def _submit(self, command: Command) -> None:
        """Submit one command. Raises MetadataError, and RefusedError on a refusal."""
        match await self.group.submit(command):
            case Failure(code=code, detail=detail):
                raise RefusedError(f"{type(command).__name__}: {code}, {detail}")


def _make_directory(path: str) -> bool:
    """Make the directory; return whether it was not there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


def _member(node_id: str, port: int) -> Member:
    return Member(
        node_id=node_id,
        raft_address=f"{HOST}:{port}",
        # Nothing but the Raft group runs here, so these two are never used.
        peer_address=f"{HOST}:1",
        client_url=f"http://{HOST}:1",
    )


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    member = MemberProcess()
    decoder, encoder = msgspec.json.Decoder(Request), msgspec.json.Encoder()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = await member.answer(decoder.decode(line))
            except (MetadataError, RefusedError, OSError) as error:
                answer = Answer(error=f"{type(error).__name__}: {error}")
            sys.stdout.write(encoder.encode(answer).decode() + "\n")
            sys.stdout.flush()
    finally:
        await member.stop()


if __name__ == "__main__":
    uvloop.run(_serve())
