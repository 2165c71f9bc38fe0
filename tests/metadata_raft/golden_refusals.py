"""What the state machine says to each kind of wrong command: (command, code, sentence)."""

from __future__ import annotations

from metadata_raft.commands import (
    SYSTEM,
    AbortUpload,
    AdmitMember,
    AdvanceGeneration,
    BootstrapCluster,
    ChangeRing,
    Command,
    CreateBucket,
    CreateJoinToken,
    CreateKey,
    DeleteBucket,
    DeleteFile,
    ForgetMember,
    Preconditions,
    ReportSettled,
    ResumeCollection,
    RevokeKey,
    SetClusterSettings,
    SetClusterVersion,
    SetMemberIntent,
    SetMemberStage,
    UpdateBucket,
    UpdateMember,
)
from tests.fakes.metadata import make_member
from tests.metadata_raft.replica import (
    ADMIN,
    chunk_list,
    put_chunks,
    put_inline,
    stage,
)

GOLDEN: dict[str, tuple[Command, str, str]] = {
    "bucket name": (
        CreateBucket(name="Photos", actor=ADMIN),
        "invalid_command",
        (
            "The bucket name 'Photos' may hold only a-z, 0-9 and hyphens, "
            "and neither begin nor end with a hyphen."
        ),
    ),
    "visibility": (
        CreateBucket(name="music", actor=ADMIN, visibility="open"),
        "invalid_command",
        "'open' is no visibility.",
    ),
    "visibility, later": (
        UpdateBucket(name="photos", actor=ADMIN, visibility="open", hidden=True),
        "invalid_command",
        "'open' is no visibility.",
    ),
    "bucket of another": (
        CreateBucket(name="photos", actor="writer"),
        "bucket_exists",
        "The bucket 'photos' belongs to another key.",
    ),
    "anonymous makes a bucket": (
        CreateBucket(name="music", actor=""),
        "forbidden",
        "This key may not create buckets.",
    ),
    "reader makes a bucket": (
        CreateBucket(name="music", actor="reader"),
        "forbidden",
        "This key may not create buckets.",
    ),
    "change another's bucket": (
        UpdateBucket(name="photos", actor="writer", hidden=True),
        "forbidden",
        "This key may not change the bucket 'photos'.",
    ),
    "delete another's bucket": (
        DeleteBucket(name="photos", actor="writer", cascade=True),
        "forbidden",
        "This key may not change the bucket 'photos'.",
    ),
    "delete no bucket": (
        DeleteBucket(name="music", actor=ADMIN),
        "no_such_bucket",
        "There is no bucket 'music'.",
    ),
    "delete a full bucket": (
        DeleteBucket(name="photos", actor=ADMIN),
        "bucket_not_empty",
        "The bucket 'photos' still holds 1 files.",
    ),
    "put into no bucket": (
        put_inline("music", "a", b""),
        "no_such_bucket",
        "There is no bucket 'music'.",
    ),
    "put under a wrong path": (
        put_inline("photos", "a/../b", b""),
        "invalid_command",
        "The path 'a/../b' has a '.' or '..' component.",
    ),
    "anonymous writes": (
        put_inline("photos", "b", b"", actor=""),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader writes": (
        put_inline("photos", "b", b"", actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "unknown key writes": (
        put_inline("photos", "b", b"", actor="revoked"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader deletes": (
        DeleteFile(bucket="photos", path="a.txt", actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "reader stages": (
        stage("photos", 1, 0, [1], actor="reader"),
        "forbidden",
        "This key may not write to bucket 'photos'.",
    ),
    "create what is there": (
        put_inline("photos", "a.txt", preconditions=Preconditions(if_none_match=("*",))),
        "precondition_failed",
        "If-None-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "replace another state": (
        put_inline("photos", "a.txt", preconditions=Preconditions(if_match=("e-other",))),
        "precondition_failed",
        "If-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "replace nothing": (
        put_inline("photos", "b", preconditions=Preconditions(if_match=("*",))),
        "precondition_failed",
        "If-Match doesn't hold for 'b' in bucket 'photos'.",
    ),
    "delete another state": (
        DeleteFile(
            bucket="photos", path="a.txt", actor=ADMIN, preconditions=Preconditions(if_match=("x",))
        ),
        "precondition_failed",
        "If-Match doesn't hold for 'a.txt' in bucket 'photos'.",
    ),
    "delete nothing": (
        DeleteFile(bucket="photos", path="b", actor=ADMIN),
        "no_such_file",
        "There is no file 'b' in bucket 'photos'.",
    ),
    "no contents": (
        put_inline("photos", "b", inline=None),
        "invalid_command",
        "Exactly one of inline, chunks and upload_id holds the contents.",
    ),
    "contents twice": (
        put_inline("photos", "b", b"x", chunks=chunk_list(1)),
        "invalid_command",
        "Exactly one of inline, chunks and upload_id holds the contents.",
    ),
    "large inline": (
        put_inline("photos", "b", bytes(4097)),
        "invalid_command",
        "Inline contents of 4097 bytes; at most 4,096 may be.",
    ),
    "wrong size": (
        put_chunks("photos", "b", 1, 2, size_bytes=1999),
        "invalid_command",
        "The contents have 2000 bytes, the command says 1999.",
    ),
    "partial reference": (
        put_chunks("photos", "b", 1, chunks=bytes(37)),
        "invalid_command",
        "The chunk list has 37 bytes, which is not 1 to 1024 references.",
    ),
    "too much metadata": (
        put_inline("photos", "b", user_metadata={"k": "é" * 4096}),
        "invalid_command",
        "User metadata and tags exceed 8192 bytes.",
    ),
    "over quota": (
        put_chunks("photos", "b", 1, 2, 3, 4, 5),
        "quota_exceeded",
        "The bucket 'photos' would hold 5,005 bytes, its quota is 5,000.",
    ),
    "no upload": (
        put_inline("photos", "b", inline=None, upload_id=bytes(16)),
        "no_such_upload",
        "No upload for 'b' has this id.",
    ),
    "stage in no upload": (
        stage("photos", 1, 1, [1]),
        "no_such_upload",
        "There is no upload 00000000000000000000000000000001.",
    ),
    "abort no upload": (
        AbortUpload(upload_id=bytes(16), actor=ADMIN),
        "no_such_upload",
        "There is no upload 00000000000000000000000000000000.",
    ),
    "key by a writer": (
        CreateKey(key_id="k", secret_hash=bytes(32), actor="writer", role="admin"),
        "forbidden",
        "Only an admin key may change keys.",
    ),
    "key with a reserved id": (
        CreateKey(key_id=SYSTEM, secret_hash=bytes(32), actor=ADMIN),
        "invalid_command",
        "A key 'system' with the role 'writer' can't be.",
    ),
    "key with no role": (
        CreateKey(key_id="k", secret_hash=bytes(32), actor=ADMIN, role="god"),
        "invalid_command",
        "A key 'k' with the role 'god' can't be.",
    ),
    "key id taken": (
        CreateKey(key_id="writer", secret_hash=b"x" * 32, actor=ADMIN),
        "invalid_command",
        "The key id 'writer' is taken already.",
    ),
    "revoke no key": (
        RevokeKey(key_id="k", actor=ADMIN),
        "no_such_key",
        "There is no key 'k'.",
    ),
    "revoke by a writer": (
        RevokeKey(key_id="reader", actor="writer"),
        "forbidden",
        "Only an admin key may change keys.",
    ),
    "token by a writer": (
        CreateJoinToken(token_id="t", secret_hash=bytes(32), actor="writer"),
        "forbidden",
        "Only an admin key may create join tokens.",
    ),
    "admit without token": (
        AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)),
        "token_invalid",
        "The join token is not one of this cluster.",
    ),
    "member of no weight": (
        UpdateMember(member=make_member(1, weight=0), boot_counter=1),
        "invalid_command",
        "The member has the weight 0, not 1 to 1,000,000.",
    ),
    "update no member": (
        UpdateMember(member=make_member(2), boot_counter=1),
        "no_such_member",
        "There is no member '00000000-0000-4000-8000-000000000002'.",
    ),
    "stage of no member": (
        SetMemberStage(node_id="n", stage="voter", expected_stage="learner"),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "no stage": (
        SetMemberStage(node_id=make_member(1).node_id, stage="king", expected_stage="voter"),
        "invalid_command",
        "'king' is no stage.",
    ),
    "another stage": (
        SetMemberStage(node_id=make_member(1).node_id, stage="voter", expected_stage="learner"),
        "stale_expectation",
        "Node 00000000-0000-4000-8000-000000000001 is voter, not learner.",
    ),
    "intent by a writer": (
        SetMemberIntent(node_id=make_member(1).node_id, actor="writer", intent="drain"),
        "forbidden",
        "Only an admin key may change members.",
    ),
    "no intent": (
        SetMemberIntent(node_id=make_member(1).node_id, actor=ADMIN, intent="rest"),
        "invalid_command",
        "'rest' is nothing that can be wanted of a member.",
    ),
    "intent for no member": (
        SetMemberIntent(node_id="n", actor=ADMIN, intent="drain"),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "another intent": (
        SetMemberIntent(
            node_id=make_member(1).node_id, actor=ADMIN, intent="leave", expected_intent="drain"
        ),
        "stale_expectation",
        "Node 00000000-0000-4000-8000-000000000001 is to stay, not to drain.",
    ),
    "the last one leaves": (
        SetMemberIntent(
            node_id=make_member(1).node_id, actor=ADMIN, intent="leave", reduce_copies=True
        ),
        "too_few_nodes",
        "No node would be left to hold chunks.",
    ),
    "leaving that stays": (
        SetMemberStage(node_id=make_member(1).node_id, stage="leaving", expected_stage="voter"),
        "stale_expectation",
        "Node 00000000-0000-4000-8000-000000000001 is to stay.",
    ),
    "forget no member": (
        ForgetMember(node_id="n"),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "forget a voter": (
        ForgetMember(node_id=make_member(1).node_id),
        "stale_expectation",
        "Node 00000000-0000-4000-8000-000000000001 is voter, not leaving.",
    ),
    "settled in no epoch": (
        ReportSettled(node_id=make_member(1).node_id, epoch=2),
        "invalid_command",
        "The ring is in epoch 1, not yet in 2.",
    ),
    "settled by no member": (
        ReportSettled(node_id="n", epoch=1),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "settings by a writer": (
        SetClusterSettings(actor="writer", settings={"repair_bytes_per_second": 1}),
        "forbidden",
        "Only an admin key may change settings.",
    ),
    "no setting": (
        SetClusterSettings(actor=ADMIN, settings={"repair_bytes_per_second": 1, "speed": 1}),
        "invalid_command",
        "'speed' is no setting.",
    ),
    "resume by a writer": (
        ResumeCollection(actor="writer"),
        "forbidden",
        "Only an admin key may resume collection.",
    ),
    "another epoch": (
        ChangeRing(expected_epoch=2, node_ids=(make_member(1).node_id,)),
        "stale_expectation",
        "The ring is in epoch 1, not 2.",
    ),
    "ring with a stranger": (
        ChangeRing(expected_epoch=1, node_ids=("n",)),
        "no_such_member",
        "There is no member 'n'.",
    ),
    "ring with a twin": (
        ChangeRing(expected_epoch=1, node_ids=(make_member(1).node_id,) * 2),
        "invalid_command",
        "A node is named twice.",
    ),
    "bootstrap again": (
        BootstrapCluster(
            cluster_id="other",
            member=make_member(2),
            replicas=3,
            admin_key_id="k",
            admin_secret_hash=bytes(32),
        ),
        "already_bootstrapped",
        "This is cluster c1d0 already.",
    ),
    "another generation": (
        AdvanceGeneration(expected=1),
        "stale_expectation",
        "The generation is 0, not 1.",
    ),
    "version back": (
        SetClusterVersion(version=0),
        "stale_expectation",
        "The cluster version is 2 already.",
    ),
}
