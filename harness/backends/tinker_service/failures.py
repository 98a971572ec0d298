"""What the SDK raises, in plain words: what, where, the fix. No key gets into them.

The SDK retries by itself, for minutes or for ever; what arrives here is final.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from harness.config_io import REDACTED, redact
from harness.exceptions import HarnessError, ServiceError

_MOST_CHARACTERS = 300  # of what a server says
_WAIT = "try again later"
_VERSIONS = "check base_url, and that server and SDK are of versions that fit together"

_BY_STATUS = {  # what it means, the fix
    401: ("the key was refused", "set TINKER_API_KEY to a key that is valid there"),
    402: ("billing", "mend the account's billing in the console"),
    403: ("not allowed", "ask for access, or use another key"),
    404: ("not there", "mend what is asked for, or base_url"),
    408: ("no answer in time", _WAIT),
    409: ("in conflict with another request", _WAIT),
    410: ("gone", "go on from the last checkpoint"),
    429: ("quota or rate limit", "wait, or raise the account's limits"),
}
_REJECTED = (400, 413, 422)
_FORGOTTEN = (404, 410)  # of the place where an answer is fetched


@contextlib.contextmanager
def in_plain_words(doing: str, where: str) -> Iterator[None]:
    """Raise ServiceError for a failure of the service; what is none of its failures, a bug of ours, stays as it is.

    Args:
        doing: What is asked for: ``"forward_backward of 8 examples"``.
        where: The server's address.
    """
    try:
        yield
    except Exception as error:
        words = _words(error)
        if words is None:
            raise
        what, fix = words
        raise ServiceError(scrubbed(f"{where}: {doing}: {what}: {fix}")) from error


def is_rejection(error: BaseException) -> bool:
    """Whether the server refused what it was sent, not whom it was sent by, and not for trouble of its own."""
    import tinker
    from tinker.types import RequestErrorCategory

    if isinstance(error, tinker.RequestFailedError):
        return error.category is not RequestErrorCategory.Server
    return (_status(error) or _status(error.__cause__)) in _REJECTED


def is_gone(error: BaseException) -> bool:
    """Whether what was asked for, a checkpoint, is not there."""
    import tinker

    if isinstance(error, tinker.RequestFailedError):
        return re.search(r"not found|no such|does not exist|expired|deleted", error.message, re.IGNORECASE) is not None
    return _status(error) in (404, 410)


def is_forgotten(error: BaseException) -> bool:
    """Whether a server that was started again, or has let go of the model, refuses to go on with it."""
    return is_rejection(error) and "not loaded" in said(error)  # SkyRL's words


def is_unsupported(error: BaseException) -> bool:
    """Whether the server does not know the request at all."""
    return _status(error) in (404, 405, 501)


def said(error: BaseException) -> str:
    """What the server said of it, in one line."""
    import tinker

    if isinstance(error, ValueError) and _status(error.__cause__):  # of fetching the answer
        return said(error.__cause__ or error)
    if isinstance(error, tinker.APIStatusError):
        text = _of_body(error.body) or error.response.reason_phrase
    elif isinstance(error, tinker.RequestFailedError):  # "Request failed: … for self.request_id='…' and …"
        text = re.sub(r"^Request failed: | for self\.request_id=.*$", "", error.message, flags=re.DOTALL)
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.split())
    return scrubbed(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…")


def scrubbed(text: str) -> str:
    """``text`` without keys, whatever their form."""
    key = os.environ.get("TINKER_API_KEY")
    return redact(text.replace(key, REDACTED) if key else text)


def _words(error: BaseException) -> tuple[str, str] | None:
    """What happened, and the fix; None for what is no failure of the service."""
    import pydantic
    import tinker
    from tinker.lib.retryable_exception import RetryableException

    cause = error.__cause__
    match error:
        case HarnessError():
            return None
        case _ if is_forgotten(error):
            return f"the server has let go of the model ({said(error)})", "go on from the last checkpoint"
        case tinker.APIResponseValidationError() | json.JSONDecodeError() | pydantic.ValidationError():
            answer = "its answer is not what this SDK understands"
            return f"{answer} (tinker {tinker.__version__}: {said(error)})", _VERSIONS
        case tinker.APIStatusError():
            return _of_status(error.status_code, said(error))
        case tinker.APIConnectionError():
            return f"it cannot be reached any more ({said(cause or error)})", "go on when it is back"
        case tinker.RequestFailedError():
            if is_rejection(error):
                return f"rejected: {said(error)}", "mend that"
            return f"the server failed: {said(error)}", _WAIT
        case TimeoutError():
            return "no answer within backend.timeout_seconds", "raise it, or leave it out to wait for ever"
        case ValueError() if isinstance(cause, tinker.APIStatusError):  # of fetching the answer
            if cause.status_code not in _FORGOTTEN:
                return _of_status(cause.status_code, said(cause))
            status = f"{cause.status_code}: {said(cause)}"
            return f"the server has forgotten the request ({status})", "go on from the last checkpoint"
        case RetryableException():
            return f"the server has forgotten the request ({said(error)})", "go on from the last checkpoint"
        case ValueError():
            return f"{said(error)} (tinker {tinker.__version__})", _VERSIONS
        case tinker.TinkerError():
            return said(error), "mend the key"
        case RuntimeError() if cause is not None:  # a request after one that failed
            return _words(cause)
    return None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an answer that is an error."""
    import tinker

    return error.status_code if isinstance(error, tinker.APIStatusError) else None


def _of_status(status: int, text: str) -> tuple[str, str]:
    if status in _BY_STATUS:
        what, fix = _BY_STATUS[status]
    elif status in _REJECTED:
        what, fix = "rejected", "mend that"
    elif status >= 500:
        what, fix = "the server failed", _WAIT
    else:
        what, fix = "refused", _VERSIONS
    return f"{what} ({status}: {text})", fix


def _of_body(body: Any) -> str:
    """The message in the body of an answer; "" where there is none."""
    if isinstance(body, dict):
        return next((_of_body(body[key]) for key in ("detail", "message", "error") if body.get(key)), "")
    if isinstance(body, list):  # FastAPI's, of a request that does not fit its schema
        return "; ".join(f"{'.'.join(map(str, item.get('loc', ())))} {item.get('msg', '')}" for item in body[:3])
    return body if isinstance(body, str) else ""
