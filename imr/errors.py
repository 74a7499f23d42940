"""The errors of imr: every mistake that it can name is an `ImrError`."""


class ImrError(ValueError):
    """A mistake in what was handed to imr: names the argument, what was found and what to do."""


class DataError(ImrError):
    """A data set that is missing, damaged, or not what it should be."""


class RunError(ImrError):
    """A run folder or checkpoint that does not belong to the configuration at hand."""


class UnreachableError(RunError):
    """An object store that does not answer, though nothing is wrong with the run that it keeps."""


class FlowError(ImrError):
    """A flow that did not reach its end."""


class MissingPackageError(ImrError, ImportError):
    """An optional package is not installed; the message holds the line to type."""


def missing_package(package: str, extra: str) -> MissingPackageError:
    """The error for an optional package that is not there."""
    return MissingPackageError(
        f"{package} is needed here and is not installed; install it with: pip install 'imr[{extra}]'"
    )
