"""Completions from any OpenAI-compatible server: vLLM, SGLang, llama.cpp, hosted models.

One request per sample, each with a seed of its own, so that texts do not depend on what else is asked. How a single
request is tried, refused or given up is decided in `prefopt.generate.server`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.errors import ConfigError, JudgeError, MissingExtraError, RecordError
from prefopt.generate.base import Completion, Request, Sampling, Tally
from prefopt.generate.failures import FailedError, Failures
from prefopt.generate.reply import RefusedError, Reply
from prefopt.generate.seeds import sample_key
from prefopt.generate.server import Line, Server, open_client
from prefopt.generate.stream import as_finished
from prefopt.progress import say
from prefopt.records import Message, Preference
from prefopt.text.render import RenderSettings, render_prompt
from prefopt.values import JsonValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SEEDS = 2**31
_AS_IT_IS = RenderSettings()
_CONTINUE = ("continue_final_message", "add_generation_prompt")
_FIRST_REFUSALS = 20
"""So many refusals before the first answer are a wrong setting, not unlucky requests."""
_OURS = ("model", "messages", "prompt")
"""Fields that no further ones may replace: who is asked, and what."""
_RESTART = 4
"""A repeated prefix shorter than this (characters) may be chance."""


class _Job(NamedTuple):
    request: Request
    body: Mapping[str, JsonValue]


class OpenAIGenerator:
    """`Generator` over one model of one server.

    A server may change what is behind a name: `identity` cannot know. Sampling is the server's, so a text is
    repeatable only as far as the server honours `seed`.
    """

    def __init__(  # noqa: PLR0913 - the settings of a server are a flat list in recipes too
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        endpoint: Literal["chat", "completions"] = "chat",
        tokenizer: PreTrainedTokenizerFast | None = None,
        concurrency: int = 16,
        timeout: float = 120,
        patience: float = 600,
        extra_body: Mapping[str, JsonValue] | None = None,
        known_as: str | None = None,
        render: RenderSettings = _AS_IT_IS,
    ) -> None:
        """Name a server; nothing is sent yet.

        Args:
            model: name of the model, as the server knows it.
            base_url: address before `/chat/completions`, usually ending in `/v1`. Nothing else is contacted.
            api_key: default is the environment variable OPENAI_API_KEY, else "none". It is sent, never shown,
                stored or digested.
            endpoint: `chat` sends conversations, and the server renders them; `completions` sends the text that
                training sees (`prefopt.text.render`).
            tokenizer: renders conversations for `completions`.
            concurrency: requests under way at a time.
            timeout: seconds for one reply.
            patience: seconds for which connection errors, timeouts, HTTP 408, 409, 425, 429 and 5xx are tried again;
                10 at most where nothing ever listened at the address.
            extra_body: further fields of each request; null takes a field of ours out. `model`, `messages` and
                `prompt` are not theirs to say.
            known_as: an earlier address of the same model, which `identity` then has in place of `base_url`, so that
                journals from before the server moved hold.
            render: how prompts become text. With `prompt_format: chat` a string is one user message.

        Raises:
            ConfigError: a setting is out of range, or the address is none.
            MissingExtraError: the openai package is not installed.
        """
        if concurrency < 1:
            raise ConfigError(f"server: concurrency is {concurrency}; use 1 or more")
        if endpoint not in {"chat", "completions"}:
            raise ConfigError(f"server: endpoint is {endpoint!r}; use chat or completions")
        _require_further(extra_body or {})
        path = "/chat/completions" if endpoint == "chat" else "/completions"
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._server = Server(base_url, path, model, key, timeout, patience)
        self._known = self._server if known_as is None else replace(self._server, base_url=known_as)
        self._tokenizer = tokenizer
        self._concurrency = concurrency
        self._extra = dict(extra_body or {})
        self._render = render
        self._dropped: set[str] = set()
        self._renamed = False
        self._reached = False
        self._failures = Failures()
        self._refused = self._retries = self._timeouts = 0
        self._continued = self._restarted = 0
        _require_client()

    @property
    def identity(self) -> str:
        """Digest of address (or `known_as`), model name, endpoint, further fields and rendering, 32 hex digits."""
        server, tokenizer = self._server, self._tokenizer
        parts = ["openai", self._known.shown, server.path, server.model, list(self._render)]
        if tokenizer is not None and server.path == "/completions":
            parts += [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template)]
        text = json.dumps([*parts, self._extra], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def tally(self) -> Tally:
        """Requests answered and not (refused or failed), further attempts and time-outs, since this object was made."""
        failures = self._failures
        refused = self._refused + len(failures.rows)
        return Tally(failures.answered, refused, self._retries, self._timeouts)

    def remind(self, texts: int) -> None:
        """A journal holds so many more texts of this model."""
        self._failures.held += texts

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion per request as they finish; those without a text have finish reason `error`.

        Few of those may have failed for reasons of the server (`prefopt.generate.failures`); a line names them.

        Raises:
            RecordError: a prompt does not fit the endpoint.
            JudgeError: the server cannot be used, or does not do what it is asked: with `needs_stops` also one that
                does not say what stopped a text. What was yielded before stands.
        """
        jobs = [_Job(request, self._body(request, sampling)) for request in requests]
        texts: dict[str, list[str]] = {}
        if not jobs:
            return
        failures, written = self._failures, 0
        failures.asked += len(jobs)
        before = len(failures.rows)
        try:
            for job, completion in as_finished(
                jobs, lambda: self._session(sampling), concurrency=self._concurrency
            ):
                if completion.finish_reason != "error":
                    texts.setdefault(job.request.digest(), []).append(completion.text)
                    written += 1
                yield completion
            failures.require_answers()
        except JudgeError as error:
            raise JudgeError(f"{error}{self._left(len(jobs) - written, len(jobs))}") from None
        told = failures.told(before)
        if told:
            say(f"{self._at()}: {told}")
        _warn_of_copies(texts, sampling)

    def _left(self, left: int, jobs: int) -> str:
        """What a run that ends has still to do, for a message; empty where it has not begun."""
        failures = self._failures
        if not (failures.answered or failures.held or failures.rows):
            return ""
        return f" ({left:,} of {jobs:,} requests are left; the same command goes on with them)"

    @asynccontextmanager
    async def _session(
        self, sampling: Sampling
    ) -> AsyncGenerator[Callable[[_Job], Awaitable[tuple[_Job, Completion]]]]:
        async with open_client(self._server) as client:
            line = Line(self._server, client, self._failures, reached=self._reached)

            async def work(job: _Job) -> tuple[_Job, Completion]:
                return job, await self._complete(job, line, sampling)

            try:
                yield work
            finally:
                self._retries += line.retries
                self._timeouts += line.timeouts
                self._reached = self._reached or line.reached

    async def _complete(self, job: _Job, line: Line, sampling: Sampling) -> Completion:
        request = job.request
        try:
            reply = await self._ask(job, line)
        except RefusedError as error:
            self._refused += 1
            refused, words = self._refused, str(error)
            if (
                refused >= _FIRST_REFUSALS
                and not self._failures.answered
                and not await line.works(self._fitted(job.body))
            ):
                raise JudgeError(
                    f"{self._at()}: each of the first {refused} requests was refused: {words}; a field that the "
                    "server does not take can be left out: extra_body {field: null}, on the command line "
                    "--extra-body '{\"field\": null}'"
                ) from None
            return Completion(request.id, request.sample, words, "error", 0)
        except FailedError as error:
            return Completion(request.id, request.sample, str(error), "error", 0)
        self._check_start(job, reply)
        completion = _cut(request, reply, sampling)
        if sampling.needs_stops and completion.stopped_by is None:
            self._require_named_stop(request, reply)
        return completion

    def _require_named_stop(self, request: Request, reply: Reply) -> None:
        """Nothing, unless a text that has ended may be one that goes on after a stop string."""
        if reply.finish_reason == "stop" and not reply.names_stops:
            raise JudgeError(
                f"{self._at()}: record {request.id!r}: the server does not say which stop string ended a text "
                "(stop_reason or matched_stop), so a text that goes on cannot be told from a finished one; use "
                "a server that does, such as vLLM or SGLang, a local model, or, for tails, one constant temperature"
            )

    async def _ask(self, job: _Job, line: Line) -> Reply:
        """The reply; a field that only some servers take is left out, or renamed, once it was refused."""
        where = f"record {job.request.id!r}"
        while True:
            body = self._fitted(job.body)
            try:
                return await line.ask(body, where)
            except RefusedError as error:
                words = str(error)
                if "max_completion_tokens" in words and "max_tokens" in body:
                    self._renamed = True
                elif "add_special_tokens" in words and "add_special_tokens" in body:
                    self._drop_special_tokens(body)
                elif "skip_special_tokens" in words and "skip_special_tokens" in body:
                    raise JudgeError(
                        f"{self._at()}: {where}: the server cannot keep special tokens in its texts: {words}; use one "
                        "that takes skip_special_tokens, such as vLLM or SGLang, or a local model"
                    ) from None
                elif any(field in words for field in _CONTINUE if field in body):
                    raise JudgeError(
                        f"{self._at()}: {where}: the server does not continue unfinished messages: {words}; "
                        "use endpoint: completions"
                    ) from None
                else:
                    raise
                self._retries += 1

    def _fitted(self, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The request as this server takes it, by its refusals so far."""
        fitted = {k: v for k, v in body.items() if k not in self._dropped}
        if self._renamed and "max_tokens" in fitted:
            fitted.setdefault("max_completion_tokens", fitted.pop("max_tokens"))
        return fitted

    def _drop_special_tokens(self, body: Mapping[str, JsonValue]) -> None:
        if "add_special_tokens" in self._dropped:
            return
        self._dropped.add("add_special_tokens")
        bos = getattr(self._tokenizer, "bos_token", None)
        if bos and str(body["prompt"]).startswith(bos):
            say(
                f"{self._at()}: the server does not take add_special_tokens; it may put a second {bos} before "
                "prompts"
            )

    def _check_start(self, job: _Job, reply: Reply) -> None:
        """Replies that begin with what they should continue show that the server starts anew.

        A single one may be the model's doing, so they have to be more than a fifth of the replies.
        """
        start, prefix = reply.text.lstrip(), job.request.prefix.strip()
        prompt = job.body.get("prompt")
        if len(prefix) >= _RESTART and start.startswith(prefix):
            remedy = (
                "it ignores continue_final_message; use endpoint: completions"
                if self._server.path == "/chat/completions"
                else "switch its echo off"
            )
        elif (
            isinstance(prompt, str)
            and len(prompt) >= _RESTART
            and start.startswith(prompt.strip() or prompt)
        ):
            remedy = "switch its echo off"
        else:
            self._continued += 1
            return
        self._restarted += 1
        if 4 * self._restarted <= self._continued:
            return
        raise JudgeError(
            f"{self._at()}: record {job.request.id!r}: the server does not continue the text "
            f"but begins again with {start[:40]!r}: {remedy}"
        )

    def _body(self, request: Request, sampling: Sampling) -> dict[str, JsonValue]:
        """The request's JSON object."""
        key = sample_key(
            seed=sampling.seed, purpose=sampling.purpose, id=request.id, sample=request.sample
        )
        body: dict[str, JsonValue] = {
            "model": self._server.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": key % _SEEDS,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.keep_special:
            body["skip_special_tokens"] = False
        chat = self._server.path == "/chat/completions"
        body |= self._conversation(request) if chat else self._text(request)
        body |= self._extra
        return {name: value for name, value in body.items() if value is not None}

    def _conversation(self, request: Request) -> dict[str, JsonValue]:
        prompt = request.prompt
        if isinstance(prompt, str):
            if self._render.prompt_format != "chat":
                raise RecordError(
                    f"record {request.id!r}: the prompt is plain text, which the chat endpoint would put into a "
                    "chat template; use endpoint: completions, prompts that are conversations, or "
                    "prompt_format: chat"
                )
            prompt = (Message("user", prompt),)
        messages: list[JsonValue] = [
            {"role": m.role, "content": m.content, **m.extra} for m in prompt
        ]
        fields: dict[str, JsonValue] = {}
        if request.prefix:
            messages.append({"role": "assistant", "content": request.prefix})
            fields = {"continue_final_message": True, "add_generation_prompt": False}
        passed = ("tools", "chat_template_kwargs")
        extras = {name: request.meta[name] for name in passed if name in request.meta}
        return {"messages": messages, **fields, **extras}

    def _text(self, request: Request) -> dict[str, JsonValue]:
        chat = self._render.prompt_format == "chat" or not isinstance(request.prompt, str)
        if self._tokenizer is not None:
            record = Preference(
                request.id, request.prompt, (), prefix=request.prefix, meta=request.meta
            )
            text = render_prompt(record, self._tokenizer, self._render)
        elif chat or not isinstance(request.prompt, str):
            raise ConfigError(
                f"record {request.id!r}: the prompt is a conversation, which the completions endpoint takes as "
                "text; pass the model's tokenizer, or use endpoint: chat"
            )
        else:
            separator = self._render.separator if request.prompt else ""
            text = request.prompt + separator + request.prefix
        # The template writes special tokens itself; plain text gets those that the tokenizer puts around texts.
        return {"prompt": text, "add_special_tokens": not chat}

    def _at(self) -> str:
        return self._server.shown + self._server.path


def _cut(request: Request, reply: Reply, sampling: Sampling) -> Completion:
    """The completion, ended before the first stop string even where the server wrote on."""
    found = [(reply.text.find(s), s) for s in sampling.stop if s in reply.text]
    if found:
        start, stop = min(found, key=lambda pair: pair[0])
        reply = reply._replace(text=reply.text[:start], finish_reason="stop", stopped_by=stop)
    stopped = reply.stopped_by if reply.stopped_by in sampling.stop else None
    return Completion(
        request.id,
        request.sample,
        reply.text,
        reply.finish_reason,
        reply.tokens,
        stopped,
        reply.prompt_tokens,
    )


def _warn_of_copies(texts: Mapping[str, Sequence[str]], sampling: Sampling) -> None:
    """A line where all samples of several prompts are copies: some servers decode greedily whatever they are told."""
    several = [t for t in texts.values() if len(t) > 1 and any(len(s) > 40 for s in t)]
    if sampling.temperature > 0 and len(several) > 3 and all(len(set(t)) == 1 for t in several):
        say(
            f"all samples of {len(several)} prompts are equal at temperature {sampling.temperature:g}: the server "
            "seems to decode greedily (`transformers serve` does unless generation_config.json has do_sample: true)"
        )


def _require_further(fields: Mapping[str, JsonValue]) -> None:
    """Nothing, unless further fields say who is asked or what."""
    taken = next((name for name in _OURS if name in fields), None)
    if taken is not None:
        raise ConfigError(
            f"server: extra_body has {taken!r}, which says who is asked or what; leave it out, and name another model "
            "as the model"
        )


def _require_client() -> None:
    try:
        import openai  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingExtraError(
            "talking to a server needs the openai client: pip install 'prefopt[openai]'"
        ) from error
