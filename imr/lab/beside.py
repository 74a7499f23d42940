"""Work in a thread beside this one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread that works beside this one; if this one fails or is stopped, nobody waits for it.

    >>> with beside() as thread:
    ...     thread.submit(sum, [1, 2]).result()
    3
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
