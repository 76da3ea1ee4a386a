"""Requests that fail for reasons of a server which answers others: a few are their own fault, more are the server's.

One generator counts them over everything that it is asked; what the server refuses in so many words is not among them.
"""

from __future__ import annotations

from prefopt.errors import JudgeError

FEW = 5
SHARE = 100
"""As many failed requests, or one in so many where that is more, do not end a run."""


class FailedError(Exception):
    """One request failed for good for reasons of the server, which answers others; the text says how."""


class Failures:
    """What became of a generator's requests so far."""

    def __init__(self) -> None:
        self.asked = 0
        """Requests to the server."""
        self.held = 0
        """Texts that a journal held, so that nobody was asked."""
        self.answered = 0
        self.rows: list[tuple[str, str]] = []
        """Whose requests failed, and how."""
        self._in_a_row = 0
        self._ending = ""

    def patience(self, seconds: float) -> float:
        """What is left of the patience with one request: half as much after each that failed and no answer since.

        A server that answers nothing any more is so given up after twice the patience, however few requests there are
        at a time.
        """
        return seconds * 0.5**self._in_a_row

    def answer(self) -> None:
        """Count a request that was answered."""
        self.answered += 1
        self._in_a_row = 0

    def fail(self, where: str, words: str, ending: str) -> Exception:
        """Count a request that failed.

        Args:
            where: whose it is.
            words: how it failed.
            ending: what is said, with a remedy, where that ends the run.

        Returns:
            `FailedError` while few fail altogether, else `JudgeError`.
        """
        self.rows.append((where, words))
        self._in_a_row += 1
        self._ending = ending
        failed, rows = len(self.rows), self.held + self.asked
        if failed <= max(FEW, rows // SHARE):
            return FailedError(words)
        if self.many_in_a_row:
            return self.end()
        return JudgeError(f"{ending}; {failed:,} of {rows:,} requests failed for good")

    @property
    def many_in_a_row(self) -> bool:
        """Whether more than few failed since the last answer."""
        return self._in_a_row > max(FEW, self.held // SHARE)

    def end(self) -> JudgeError:
        """What to raise where many failed in a row."""
        return JudgeError(
            f"{self._ending}; {self._in_a_row:,} requests failed for good, and none was answered in between"
        )

    def require_answers(self) -> None:
        """Nothing, unless more requests failed than there are texts: then nothing says that the server works.

        Raises:
            JudgeError: that is so.
        """
        failed, texts = len(self.rows), self.answered + self.held
        if failed > texts:
            raise JudgeError(
                f"{self._ending}; {failed} requests failed for good, {texts} were answered"
            )

    def told(self, since: int) -> str:
        """Those beyond the first `since` for a message, each with how it failed; empty where there are none."""
        rows = self.rows[since:]
        if not rows:
            return ""
        some = "; ".join(f"{where}: {words}" for where, words in rows[:FEW])
        more = "; ..." if len(rows) > FEW else ""
        return f"{len(rows):,} requests failed for good and have no text, the next run asks again: {some}{more}"
