"""What a processor can say of a message, and what can be wrong with one and with its result."""

from __future__ import annotations


class RejectMessage(Exception):  # noqa: N818 - read as what it orders: `raise RejectMessage(...)`
    """Raised by a processor: this message is not to be delivered again.

    Args:
        reason: a short name of what is wrong, such as `unknown customer`; the dead letter has it.
        description: more of it, for who reads the dead letter. Nothing is added to either, so what
            is not to be stored there should not be in them.
    """

    def __init__(self, reason: str, description: str = "") -> None:
        super().__init__(reason, description)
        self.reason = str(reason)
        self.description = str(description)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.reason, self.description)))


class RetryLater(Exception):  # noqa: N818 - read as what it orders: `raise RetryLater(...)`
    """Raised by a processor: nothing is wrong with this message, try it again after a wait.

    At least once, it stays in hand meanwhile, for `outage_patience_s`, and its delivery counts for
    nothing. At most once, it is lost as with any other error.

    Args:
        reason: what is to be waited for, such as `the database is down`; it is logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


class UndecodableError(ValueError):
    """A body is no text in UTF-8. The error says where, and nothing of what it holds."""


class UnsentError(Exception):
    """A result did not get into the out queue, which is no fault of the message's."""


class BusClosedError(RuntimeError):
    """Something was to be sent when the handler had ended."""
