"""The exception tree: every error that llmpq raises on purpose.

LlmpqError                 exit 1 unless a subclass says otherwise
├── InputError             exit 2: what the user gave is missing, malformed or unknown
│   ├── ClusterError       a cluster file, short string or device name
│   ├── RuleError          a constraint that does not parse; carries the column
│   ├── TraceError         a model that cannot be traced
│   └── CheckpointError    a missing, truncated or altered file
├── InfeasibleError        exit 3: proven that no plan exists; carries the reasons
├── TimeLimitError         exit 4: no plan found within the time limit
├── QualityError           an explicit quality target that the quantized model breaks
├── VerifyError            a value that contradicts itself after a pass
├── PassError              a pass that cannot run where it stands
├── CertificateError       a certificate that does not prove what it claims, or a bound that none can be made of
├── QuantizationError      a weight that cannot be quantized as asked
└── BackendError           a backend that cannot run the program; carries the reasons
    └── PeerError          exit 75 in a stage's process that lost another stage; its launcher names that one and exits 1
        └── StageLostError exit 1 in the process that started the stages

Messages name the entity, what was found, what was expected and the remedy, in one line.
"""

from typing import ClassVar

from llmpq.fix import Fix


class LlmpqWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class LlmpqError(Exception):
    exit_code: ClassVar[int] = 1

    @property
    def details(self) -> tuple[str, ...]:
        """Lines that the command line prints below the message."""
        return ()


class InputError(LlmpqError):
    exit_code = 2


class ClusterError(InputError):
    pass


class RuleError(InputError):
    """A constraint that does not parse; `column` counts from 1."""

    def __init__(self, message: str, rule: str, column: int) -> None:
        super().__init__(f"constraint {rule!r}, column {column}: {message}")
        self.rule = rule
        self.column = column

    @property
    def details(self) -> tuple[str, ...]:
        """The rule, and a caret under the column."""
        return (f"  {self.rule}", f"  {' ' * (self.column - 1)}^")


class TraceError(InputError):
    pass


class CheckpointError(InputError):
    pass


class InfeasibleError(LlmpqError):
    """No plan exists; `reasons` are sentences in the user's words, the first one the most useful.

    `fixes`: single changes that make a plan possible, each verified by planning again, where they were looked for.
    """

    exit_code = 3

    def __init__(self, reasons: tuple[str, ...], fixes: tuple[Fix, ...] = ()) -> None:
        super().__init__("no plan exists: " + "; ".join(reasons))
        self.reasons = reasons
        self.fixes = fixes


class TimeLimitError(LlmpqError):
    exit_code = 4


class QualityError(LlmpqError):
    pass


class VerifyError(LlmpqError):
    pass


class PassError(LlmpqError):
    pass


class CertificateError(LlmpqError):
    pass


class QuantizationError(LlmpqError):
    pass


class BackendError(LlmpqError):
    """A backend that cannot run the program; `reasons` says why, one sentence each."""

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(": ".join((message, "; ".join(reasons))) if reasons else message)
        self.reasons = reasons


class PeerError(BackendError):
    """Another stage's process died, hung or is unreachable; its own exit code keeps it apart from the cause.

    rank, reason: the stage that is lost, where it is known, and how. generated: the tokens that every sequence of the job had
    until then; ended: the sequences that had come to their end.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
    rank: int | None = None
    reason: str = ""
    generated: tuple[tuple[int, ...], ...] = ()
    ended: tuple[int, ...] = ()


class StageLostError(PeerError):
    """What the process that started the stages says of one that is lost."""

    exit_code = 1
