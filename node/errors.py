"""Why a node does not start, or stops: each error is one sentence for the operator.

NodeError                      one sentence; the process ends with `exit_code`
├── SettingsError              several sentences, one for each setting that is wrong
├── ShadowedError              another distribution answers to our package names
├── DataDirectoryError         the directory cannot be used as it is
├── JoinError                  the cluster did not admit this node
├── PortTakenError             somebody else listens there
├── MembershipError            removed, or restored from an old copy: this node must not run
│   └── DepartedError          it has left its cluster as its operator wanted: nothing is wrong
└── FatalDiskError             a write or sync failed: nothing more may be acknowledged
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_TRY_AGAIN = 5


class NodeError(Exception):
    """A sentence that says what is wrong and, where there is something to do, what to do."""

    exit_code = EXIT_FAILED


class SettingsError(NodeError):
    """All that is wrong with the settings at once."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ShadowedError(NodeError):
    pass


class DataDirectoryError(NodeError):
    pass


class JoinError(NodeError):
    pass


class PortTakenError(NodeError):
    pass


class MembershipError(NodeError):
    """`left` says that the cluster has removed this node for good."""

    def __init__(self, sentence: str, *, left: bool) -> None:
        super().__init__(sentence)
        self.left = left


class DepartedError(MembershipError):
    """The end of a node that was told to leave, and has."""

    exit_code = EXIT_DONE

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, left=True)


class FatalDiskError(NodeError):
    pass
