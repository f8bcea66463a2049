# SPDX-License-Identifier: Apache-2.0
"""Files that a client of the API names by an address: fetched within the limits of uploads, from public hosts only."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path
from urllib.parse import urljoin

import gradio as gr
import httpx
import safehttpx
from generation import MAX_FILE_BYTES

FETCH_TIMEOUT_S = 30.0  # for all of it
MAX_REDIRECTS = 5


async def fetch_file(url: str, cache: Path, limit_bytes: int = MAX_FILE_BYTES) -> str:
    """Download a file into a folder of its own below the cache.

    Args:
        url: http or https.
        cache: folder from which the page serves, and which it cleans.
        limit_bytes: longest file; a longer one is given up when that is known.

    Returns:
        Path of the file.

    Raises:
        gr.Error: the host is not public or does not answer, the answer is no file, or the file is too long.
    """
    folder = cache / secrets.token_urlsafe(24)
    folder.mkdir(parents=True)
    target, is_whole = folder / "fetched", False
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            await _download(url, target, limit_bytes)
        is_whole = True
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise gr.Error(f"The address {url} must give a file: {reason}", print_exception=False) from error
    finally:
        if not is_whole:  # also where whoever waited has gone
            shutil.rmtree(folder)
    return str(target)


async def _download(url: str, target: Path, limit_bytes: int) -> None:
    """Follow redirects, each to a host that is checked to be public, and write the file."""
    for _ in range(MAX_REDIRECTS + 1):
        host = httpx.URL(url).host
        transport = safehttpx.AsyncSecureTransport(await safehttpx.async_validate_url(host))
        async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", url) as answer:
            if answer.has_redirect_location:
                url = urljoin(str(answer.url.copy_with(host=host)), answer.headers["Location"])
                continue
            answer.raise_for_status()
            size = 0
            with target.open("wb") as file:
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > limit_bytes:
                        raise ValueError(f"it has more than {limit_bytes / 1e6:g} MB.")
                    file.write(part)
            return
    raise ValueError(f"it redirects more than {MAX_REDIRECTS} times.")
