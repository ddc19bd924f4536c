"""What goes wrong between us and the Hub, as errors of ours that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from registry.errors import AccessDenied, RegistryError, SourceNotFound, SourceUnreachable, StorageFull

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"


@contextlib.contextmanager
def typed_errors(repo: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into SourceNotFound, AccessDenied or SourceUnreachable."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # the transports (httpx, httpx2, hf_xet) raise types of their own, by release
        typed = _type_error(error, repo, revision)
        if typed is None:
            raise
        raise typed from error


def _type_error(error: BaseException, repo: str, revision: str) -> RegistryError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # it says only that the cache does not help either
    web = f"{_read_endpoint()}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return AccessDenied(
            f"{repo} is gated, and its owners have not given you access.",
            hint=f"Accept its conditions at {web}, then {_LOG_IN}.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceNotFound(
            f"There is no {repo!r}, neither a path here nor a public model on the Hub.",
            hint=f"Check how it is written. If it is private, {_LOG_IN}.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceNotFound(
            f"{repo} has no branch, tag or commit {revision!r} on the Hub.", hint=f"See what it has: {web}/tree/main"
        )
    if isinstance(error, errors.EntryNotFoundError) and isinstance(error, errors.HfHubHTTPError):
        return SourceNotFound(f"{repo} no longer has a file that it listed: {_first_line(error)}", hint="Try again.")
    if isinstance(error, errors.HfHubHTTPError):
        return _type_status(error, repo)
    return _type_transport(error, repo)


def _type_status(error: BaseException, repo: str) -> RegistryError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return AccessDenied(f"The Hub does not let you read {repo} (HTTP {status}).", hint=f"To read it, {_LOG_IN}.")
    if status == 451 or "disabled" in str(error):
        return AccessDenied(f"The Hub has disabled {repo}.", hint="Ask its owners, or take another model.")
    if status == 429:
        return SourceUnreachable(
            f"The Hub answers no more for now: too many requests (HTTP 429), asked for {repo}.",
            hint="Wait some minutes; logging in (`hf auth login`) raises the limit.",
        )
    return SourceUnreachable(
        f"The Hub cannot answer for {repo}: {_first_line(error)}", hint="Try again in a while; nothing was stored."
    )


def _type_transport(error: BaseException, repo: str) -> RegistryError | None:
    from huggingface_hub import errors

    # httpx.HTTPError or httpx2.HTTPError, whichever this release of huggingface_hub is built on
    transport = next(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"There is no space left for the Hub cache ({error.filename or _read_cache()}).",
            hint="Make room, or point HF_HOME at another disk. What was fetched whole is kept.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return SourceUnreachable(
            f"{repo} is neither a path here nor in the Hub cache, and HF_HUB_OFFLINE forbids asking the Hub.",
            hint=f"Unset HF_HUB_OFFLINE, or put it into {_read_cache()} first: hf download {repo}",
        )
    # hf_xet raises RuntimeError; the others are what an answer that is no Hub's leads to, a proxy's page, say
    if isinstance(error, (transport, OSError, RuntimeError, ValueError, KeyError, TypeError)):
        return SourceUnreachable(
            f"{repo} cannot be had from the Hub ({_read_endpoint()}): {_first_line(error)}",
            hint="Check the network and HF_ENDPOINT; if a path was meant, there is none. Nothing was stored.",
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines or [type(error).__name__])[0].rstrip('.')}."


def _read_endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _read_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE
