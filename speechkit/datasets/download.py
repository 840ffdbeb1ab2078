"""Fetch a file from a URL, with a checksum and resume, and extract archives safely."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from speechkit.data.errors import DataError
from speechkit.files import file_digest

_BLOCK = 1 << 20


class DownloadError(OSError):
    """A file could not be fetched or is not what was asked for; the message says what to do."""


class _InterruptedError(Exception):
    """The connection broke; what arrived is kept and another try goes on from there."""


def fetch(
    url: str,
    path: str | os.PathLike[str],
    *,
    checksum: str | None = None,
    num_retries: int = 5,
    wait_seconds: float = 1.0,
    timeout_seconds: float = 60.0,
) -> Path:
    """Fetch a URL to a file, unless the file is there with the right checksum.

    What arrives is kept in ``<path>.part`` until it is complete. When the connection breaks, in
    this call or an earlier one, the rest is asked for (HTTP Range); a server that does not know
    ranges sends everything again.

    Parameters
    ----------
    url : str
        What to fetch: http, https or file.
    path : path
        Where it goes; missing folders are made.
    checksum : str, optional
        ``"md5:<hex>"`` or ``"sha256:<hex>"``. Without one, an existing file is taken as it is.
    num_retries : int
        How often a broken connection is taken up again.
    wait_seconds : float
        Pause before the first retry; doubled for each further one.
    timeout_seconds : float
        A connection that is silent for so long counts as broken.

    Returns
    -------
    Path
        `path`, complete and checked.

    Raises
    ------
    DownloadError
        When the server refuses, the connection keeps breaking, or the checksum differs.
    ValueError
        When the checksum is not written as above.
    """
    path = Path(path)
    algorithm, digest = _parse_checksum(checksum)
    if path.is_file():
        if digest is None or file_digest(path, algorithm) == digest:
            return path
        raise DownloadError(
            f"{path} is there, but its {algorithm} is {file_digest(path, algorithm)} and not "
            f"{digest}: remove it to fetch {url} again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.is_file() and part.stat().st_size > 0
    _fetch_part(url, part, num_retries, wait_seconds, timeout_seconds)
    if digest is not None and file_digest(part, algorithm) != digest and resumed:
        # The first piece may be of an older file: one try from the start.
        part.unlink()
        _fetch_part(url, part, num_retries, wait_seconds, timeout_seconds)
    if digest is not None and (found := file_digest(part, algorithm)) != digest:
        part.unlink()
        raise DownloadError(
            f"{url}: the {algorithm} is {found} and not {digest}; the file was removed. The server "
            "sent something else, or a damaged file: try again, or another mirror"
        )
    part.replace(path)
    return path


def fetch_corpus(
    url: str,
    root: str | os.PathLike[str],
    *,
    holds: str,
    checksum: str | None = None,
    layout: str = "",
    keep_archive: bool = False,
    num_retries: int = 5,
) -> Path:
    """Fetch an archive and extract it under a folder, unless what it holds is there.

    A download that was cut off goes on where it stopped, in this call or a later one; an archive
    is extracted wholly or not at all.

    Parameters
    ----------
    url, checksum, num_retries
        See `fetch`.
    root : path
        Where the archive's contents go.
    holds : str
        A file or folder in the archive by which the corpus is known; where ``root`` has it, nothing
        is fetched.
    layout : str
        What the error about another archive says of the corpus.
    keep_archive : bool
        Keep the archive after extraction.

    Returns
    -------
    Path
        ``root``, absolute.

    Raises
    ------
    DownloadError
        When the archive cannot be fetched, has another checksum or is not safe to extract.
    DataError
        When the archive does not have `holds`.
    """
    root = Path(root).absolute()
    if (root / holds).exists():
        return root
    archive = root / unquote(Path(urlsplit(url).path).name)
    fetch(url, archive, checksum=checksum, num_retries=num_retries)
    extract(archive, root)
    if not (root / holds).exists():
        raise DataError(f"{archive}: no {holds} in it. {layout}".rstrip())
    if not keep_archive:
        archive.unlink()
    return root


def fetch_subsets(
    subsets: Sequence[str],
    root: str | os.PathLike[str],
    *,
    base_url: str,
    corpus: str,
    checksums: Mapping[str, str],
    keep_archives: bool = False,
    num_retries: int = 5,
) -> Path:
    """Fetch the archives ``<subset>.tar.gz`` of a corpus, each of which holds ``corpus/<subset>``.

    Parameters
    ----------
    subsets : sequence of str
        Which ones; those that are there are not fetched.
    root : path
        Where the folder of the corpus appears.
    base_url : str
        Where the archives are; a mirror, for example.
    corpus : str
        Name of the folder.
    checksums : mapping
        From subset to checksum, as `fetch` takes it.
    keep_archives, num_retries
        See `fetch_corpus`.

    Returns
    -------
    Path
        ``root/corpus``.

    Raises
    ------
    ValueError
        When a subset has no known checksum.
    DownloadError, DataError
        See `fetch_corpus`.
    """
    unknown = [subset for subset in subsets if subset not in checksums]
    if unknown:
        raise ValueError(f"unknown subset {', '.join(unknown)}; known: {', '.join(checksums)}")
    for subset in subsets:
        fetch_corpus(
            f"{base_url.rstrip('/')}/{subset}.tar.gz",
            root,
            holds=f"{corpus}/{subset}",
            checksum=checksums[subset],
            keep_archive=keep_archives,
            num_retries=num_retries,
        )
    return Path(root).absolute() / corpus


def _parse_checksum(checksum: str | None) -> tuple[str, str | None]:
    if checksum is None:
        return "md5", None
    algorithm, _, digest = checksum.partition(":")
    lengths = {"md5": 32, "sha256": 64}
    if len(digest) != lengths.get(algorithm):
        raise ValueError(f"checksum must be 'md5:<32 hex>' or 'sha256:<64 hex>', got {checksum!r}")
    return algorithm, digest.lower()


def _fetch_part(
    url: str, part: Path, num_retries: int, wait_seconds: float, timeout_seconds: float
) -> None:
    """Fetch until the file is complete; go on after a broken connection."""
    for attempt in range(num_retries + 1):
        try:
            _request(url, part, timeout_seconds)
            return
        except _InterruptedError as error:
            if attempt == num_retries:
                have = part.stat().st_size if part.is_file() else 0
                raise DownloadError(
                    f"{url}: {error}, {attempt + 1} times; {have} bytes are kept in {part}: run "
                    "this again to go on from there"
                ) from error
            time.sleep(wait_seconds * 2**attempt)


def _request(url: str, part: Path, timeout_seconds: float) -> None:
    """Make one request for what is missing and append it."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
            goes_on = have > 0 and response.status == http.client.PARTIAL_CONTENT
            _receive(response, part, have if goes_on else 0)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            total = error.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return  # the earlier call was stopped just before the end
            part.unlink()
            raise _InterruptedError("the kept piece is longer than the file") from error
        if error.code >= 500 or error.code == 429:
            raise _InterruptedError(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: the server answered {error.code} {error.reason}: check the address"
        ) from error
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        reason = getattr(error, "reason", error)
        raise _InterruptedError(f"the connection broke ({reason})") from error


def _receive(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    """Write a response's body to the file from byte `start` on."""
    from tqdm import tqdm

    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    bar = tqdm(
        desc=part.stem, initial=start, total=total, unit="B", unit_scale=True,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with part.open("ab" if start else "wb") as file, bar:
        while block := response.read(_BLOCK):
            file.write(block)
            bar.update(len(block))
    if total is not None and part.stat().st_size < total:
        raise _InterruptedError(
            f"the connection ended after {part.stat().st_size} of {total} bytes"
        )


def extract(archive: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Extract a tar or zip archive of plain files under a folder, wholly or not at all.

    Parameters
    ----------
    archive : path
        A ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz`` or ``.zip`` file.
    folder : path
        Where its contents go, beside what is there.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    DownloadError
        When a member would leave the folder, is a link or a device, or the archive is damaged;
        nothing of it is left then.
    """
    archive, folder = Path(archive), Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{archive.name}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, partial)
        else:
            _extract_tar(archive, partial)
        _move_into(partial, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(
            f"{archive}: damaged, or no archive ({error}): remove it and fetch it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_member(archive: Path, name: str, folder: Path, *, plain: bool) -> None:
    """Refuse a member that is neither file nor folder, or lies elsewhere than under `folder`."""
    target = Path(os.path.normpath(folder / name))
    if not plain or (target != folder and folder not in target.parents):
        what = "would leave the folder" if plain else "is a link or a device"
        raise DownloadError(
            f"{archive}: its member {name!r} {what}; nothing was extracted. Do not use this archive"
        )


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        for member in file:
            plain = member.isfile() or member.isdir()
            _check_member(archive, member.name, folder, plain=plain)
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            # Written by hand: owners, modes and times of the archive are of no use here.
            target.parent.mkdir(parents=True, exist_ok=True)
            source = file.extractfile(member)
            assert source is not None  # it is a plain file
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _BLOCK)


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = member.external_attr >> 28  # the file type of a Unix mode; 0 where there is none
            _check_member(archive, member.filename, folder, plain=kind in (0, 4, 8))
            file.extract(member, folder)


def _move_into(source: Path, folder: Path) -> None:
    """Move everything under `source` to `folder`, joining folders that are already there."""
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            _move_into(entry, target)
        else:
            entry.replace(target)
