"""Many queries through one model: which rows share a run, on which threads, and back in the order asked.

Plans by length alone, so that the same queries are always cut into the same batches. Keeps no more than two windows of
queries at once. Knows no file and no tokenizer; what to run, and whether rows may share a run, the model says.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.tagging import EncodedQuery, TaggedQuery, TokenClassifier, Window, pad

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

# More tokens in one run do not make it faster per token, and above twice as many it gets slower: the intermediate
# tensors leave the cache (docs/serving.md).
TOKENS_IN_A_RUN = 256


@dataclass(frozen=True, slots=True)
class Budget:
    """How much goes into one model run: at most `rows` rows, and as many as make `tokens` tokens, padding included."""

    rows: int
    tokens: int = TOKENS_IN_A_RUN

    def __post_init__(self) -> None:
        """Refuse a budget that nothing fits into."""
        if self.rows < 1:
            message = f"batch_size must be 1 or more, not {self.rows}"
            raise ValueError(message)

    def holds(self, rows: int, longest: int) -> bool:
        """Whether so many rows of so many tokens fit; one row always does."""
        return rows == 1 or (rows <= self.rows and rows * longest <= self.tokens)


class Row(NamedTuple):
    """One window of one query, by the query's place in its list."""

    query: int
    window: Window


def plan(queries: Sequence[EncodedQuery], budget: Budget) -> list[list[Row]]:
    """Cut the windows of queries into batches of similar length, the longest first, so that no long one comes last.

    Windows without a word's first token are left out: nothing asks for their logits.
    """
    rows = [Row(index, window) for index, query in enumerate(queries) for window in query.windows if window.heads]
    rows.sort(key=lambda row: -len(row.window.input_ids))
    batches: list[list[Row]] = []
    longest = 0
    for row in rows:
        if not batches or not budget.holds(len(batches[-1]) + 1, longest):
            batches.append([])
            longest = len(row.window.input_ids)
        batches[-1].append(row)
    return batches


@dataclass(frozen=True, slots=True)
class _Begun:
    """A window of queries whose batches are being run; without `futures`, each is run when its answer is wanted."""

    queries: list[EncodedQuery]
    batches: list[list[Row]]
    futures: list[Future[NDArray[np.float32]]]

    def cancel(self) -> None:
        """Have batches that still wait for a thread not run."""
        for future in self.futures:
            future.cancel()


class Crew:
    """A model, and the threads that run batches through it at the same time."""

    def __init__(self, model: TokenClassifier, workers: int) -> None:
        """Start no thread yet.

        Args:
            model: answers from any thread.
            workers: how many runs may go on at once.
        """
        self._model = model
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, object]:
        """Leave out the threads, which another process starts for itself."""
        return {**self.__dict__, "_pool": None}

    @property
    def _alone(self) -> bool:
        """Whether each row needs a run of its own; a model that does not say is one function of its row."""
        return bool(getattr(self._model, "answers_depend_on_mates", False))

    def tagged(self, texts: Iterable[str], budget: Budget, window: int) -> Iterator[TaggedQuery]:
        """Tag any number of queries, in their order.

        While the batches of one window of queries run, the next window is read and encoded. If reading fails, all
        that was read before is answered first.

        Args:
            texts: the queries; read as answers are taken, at most two windows ahead.
            budget: what goes into a model run.
            window: how many queries are planned, and held, together.
        """
        begun: deque[_Begun] = deque()
        try:
            failure = None
            windows = windows_of(texts, window)
            while failure is None:
                try:
                    queries = next(windows, None)
                except Exception as err:  # the source's own, raised again below
                    failure = err
                    continue
                if queries is None:
                    break
                begun.append(self._begin(queries, budget))
                if len(begun) > 1:
                    yield from self._finish(begun.popleft())
            while begun:
                yield from self._finish(begun.popleft())
            if failure is not None:
                raise failure
        finally:
            for left in begun:  # nobody wants the answers any more
                left.cancel()

    def _begin(self, texts: Sequence[str], budget: Budget) -> _Begun:
        queries = self._model.encode(texts)
        batches = plan(queries, Budget(1) if self._alone else budget)
        if self._workers == 1 or len(batches) == 1:
            return _Begun(queries, batches, [])
        pool = self._threads()
        return _Begun(queries, batches, [pool.submit(self._run, batch) for batch in batches])

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # a fork copies no threads
            from concurrent.futures import ThreadPoolExecutor  # not at the start of a program that serves

            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="harness")
            self._process = os.getpid()
        return self._pool

    def _run(self, batch: Sequence[Row]) -> NDArray[np.float32]:
        return self._model.logits(pad([row.window for row in batch], self._model.pad_token_id))

    def _finish(self, begun: _Begun) -> Iterator[TaggedQuery]:
        logits = [np.zeros((len(query.words), len(self._model.labels)), np.float32) for query in begun.queries]
        found = (future.result() for future in begun.futures) if begun.futures else map(self._run, begun.batches)
        try:
            for batch, answer in zip(begun.batches, found, strict=True):
                for place, row in enumerate(batch):
                    logits[row.query][row.window.words] = answer[place, row.window.heads]
        except BaseException:
            begun.cancel()
            raise
        for query, values in zip(begun.queries, logits, strict=True):
            yield TaggedQuery(query.text, query.words, values)


def windows_of(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut any iterable into lists of so many; what was read before an error is given first, then the error raised."""
    window: list[str] = []
    try:
        for text in texts:
            window.append(text)
            if len(window) == size:
                yield window
                window = []
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window
