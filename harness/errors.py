"""Everything that can go wrong because of something the user can fix.

A rejected candidate is not in here: that is a `Verdict`, a result like any other.
"""


class HarnessError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


class UsageError(HarnessError):
    """The command was called in a way that cannot work."""


class CheckpointError(HarnessError):
    """A PyTorch checkpoint folder cannot be used as a reference."""


class ArtifactError(HarnessError):
    """A folder with an ONNX export cannot be read, written or accepted."""


class AcceptanceError(HarnessError):
    """The file system kept an accepted candidate from becoming the release; not the user's input, so exit code 3."""


class DataError(HarnessError):
    """A file of labelled queries cannot be read."""


class PolicyError(HarnessError):
    """A policy file cannot be used."""


class SuiteError(HarnessError):
    """A judging suite cannot be found or loaded, or two claim one name."""


class BrokenSuiteError(SuiteError):
    """An installed suite does not load, so nothing can be judged; exit code 3."""


class DocumentError(HarnessError):
    """A JSON document of the harness is damaged or of another version."""


class HistoryError(HarnessError):
    """The history of runs is damaged, or a run that was asked for is not in it."""


class MissingPackageError(HarnessError):
    """What was asked for needs an extra, such as `release`, that is not installed."""


def one_line(text: object, limit: int = 300) -> str:
    """Fold any text, such as a foreign exception's, into one printable line of at most `limit` characters."""
    folded = " ".join(str(text).split())
    printable = "".join(character if character.isprintable() else "?" for character in folded)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"
