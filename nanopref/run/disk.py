"""Files that are whole or not there, and folders that one process works on at a time.

A file is written under another name and then renamed, so that a kill at any moment leaves the old one or the new one.
"""
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nanopref.errors import UserError
from nanopref.run.distributed import is_main

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
PARTIAL = "partial-"  # how the names begin under which files are written, and what is on its way out


def write(path: Path, content) -> None:
    """Writes a file in one step, in a folder that is made if need be. content: its text, or a function that writes it
    to the path it is given. UserError where there is no room, or no right to write."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")  # keeps the ending, which savefig goes by
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content(partial) if callable(content) else partial.write_text(content, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Writes JSON in one step, with every character as it is."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows) -> None:
    """Writes one row a line in one step."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def writing(path):
    """What is in its block writes to `path`. UserError for what the disk refuses: safetensors raises an exception of
    its own for it, tokenizers a plain Exception."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise UserError(f"{path} cannot be written: {reason}. Make room, or check who may write there, then run the "
                        "same command with --resume: nothing is lost") from None


def remove(path: Path) -> None:
    """Deletes a file or a folder with all that is in it. A folder disappears in one step."""
    if path.is_dir():
        gone = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def begin(folder: Path, described: dict) -> None:
    """Makes a run's folder, or withdraws what was done there: first its report, whose presence says that it is done.
    Then its config.json is written anew."""
    if is_main():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove(folder / "report.json")
            for left in list(folder.glob(f"{PARTIAL}*")):  # by a process that was killed
                remove(left)
        write_json(folder / "config.json", described)


@contextmanager
def alone_in(folder: Path):
    """While its block runs, no other process may run one for the same folder: UserError there. The lock is the
    kernel's, on a file beside the folder: a process that is killed gives it up. Without fcntl nothing is locked."""
    if fcntl is None or not is_main():
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder}: process {file.read() or '(unknown)'} works on this very run: wait for it, or "
                            "give this one another --out") from None
        with writing(path):
            file.truncate(0)
            print(os.getpid(), end="", file=file, flush=True)
        yield
