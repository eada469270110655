"""fakehub: a small model/data-set hub on loopback, for offline tests.

It speaks the part of the Hub's HTTP interface that `huggingface_hub`, `datasets`,
`transformers` and `snac` use, so that a program under test runs its *real* loading and
uploading code with `HF_ENDPOINT` pointed here. Nothing leaves the machine.

A folder is the hub:

    ROOT/datasets/<user>/<name>/...      ROOT/models/<user>/<name>/...

Files put there before the start are the first commit of that repository; after each upload
to `main` the same folder shows the result, so a test can read it with `open`. History,
branches, tags and file contents are kept under ROOT/.fakehub/ and survive a restart.

Command line:

    fakehub.py ROOT [--port 0] [--token T]... [--read-token T]... [--canary SECRET]...
               [--fault 'METHOD REGEX key=value ...']... [--cdn] [--multipart BYTES]

It prints one line, `HF_ENDPOINT=http://127.0.0.1:PORT`, once it accepts connections.
In a test:

    with FakeHub(root, tokens=["hf_test"]) as hub:
        subprocess.run([...], env=hub.env(cache_dir, token="hf_test"))
        assert hub.requests("POST", "/commit/")
        assert not hub.leaks()

(HF_ENDPOINT is read when huggingface_hub is imported: use a child process, or set it first.)

Faults (first matching rule wins; `times` counts down, -1 = for ever):
    status=503 [retry_after=1]  answer with that status
    drop=1                      read the request, then close without an answer
    cut=N                       send the right headers but only N bytes of the body
    flip=N                      flip one bit of the body at offset N, headers unchanged
    delay=S                     wait S seconds, then go on as usual
    after=N                     let the first N matches through untouched
    then=1                      with status/drop: do the work first, then lose the answer
They, and the request log, are also reachable over HTTP under /__fakehub__/ (GET log, POST
faults, POST reset).

Not here: pull requests, spaces, the chunk store that clients after 1.10 upload large files to
(those clients are told to send every file inside the commit), the data-set viewer, gated
access forms, rename. `card_problems` is an approximation of the real metadata check.
Needs nothing outside the standard library but PyYAML, which huggingface_hub brings.
"""

# ruff: noqa: E501, SIM105
from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

KINDS = ("models", "datasets")
LFS_SUFFIXES = [
    ".7z",
    ".arrow",
    ".bin",
    ".bz2",
    ".ckpt",
    ".flac",
    ".ftz",
    ".gz",
    ".h5",
    ".joblib",
    ".lz4",
    ".mp3",
    ".msgpack",
    ".npy",
    ".npz",
    ".ogg",
    ".onnx",
    ".opus",
    ".parquet",
    ".pb",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
    ".rar",
    ".safetensors",
    ".tar",
    ".tgz",
    ".wav",
    ".webm",
    ".wasm",
    ".xz",
    ".zip",
    ".zst",
]
CHUNK = 1 << 20
NAME = re.compile(r"^[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?$")


# --------------------------------------------------------------------------- helpers


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def safe_path(path: str) -> bool:
    parts = path.split("/")
    return (
        bool(path)
        and not path.startswith("/")
        and "\\" not in path
        and "\0" not in path
        and not any(p in ("", ".", "..", ".git") for p in parts)
    )


def card_problems(text: str) -> tuple[list[str], list[str]]:
    """What the Hub would object to in a README's front matter: (errors, warnings).

    A close approximation of the rules that training tools really run into; not the full schema.
    """
    import yaml

    match = re.match(r"^\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if not match:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        meta = yaml.safe_load(match.group(1))
    except yaml.YAMLError as exc:
        return [f"front matter is not valid YAML: {' '.join(str(exc).split())}"], []
    if meta is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(meta, dict):
        return ["front matter must be a mapping"], []

    errors: list[str] = []

    def strings(key: str, many: bool = True) -> list[str]:
        if key not in meta:
            return []
        value = meta[key]
        items = value if many and isinstance(value, list) else [value]
        good = []
        for i, item in enumerate(items):
            where = f'"{key}[{i}]"' if items is value else f'"{key}"'
            if not isinstance(item, str):
                errors.append(f"{where} must be a string, not {item!r}")
            elif not item.strip():
                errors.append(f"{where} is not allowed to be empty")
            else:
                good.append(item)
        return good

    for key in ("base_model", "datasets"):
        for item in strings(key):
            parts = item.split("/")
            if len(parts) > 2 or not all(NAME.match(p) for p in parts):
                errors.append(f'"{key}" with value "{item}" is not a valid repository id')
    for item in strings("language"):
        if item != item.lower():
            errors.append(f'"language" must be in lower case, got "{item}"')
    for key in ("license", "tags", "metrics"):
        strings(key)
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        strings(key, many=False)
    if "model-index" in meta and not isinstance(meta["model-index"], list):
        errors.append('"model-index" must be a list')
    return errors, ([] if "license" in meta else ["no license given"])


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


# --------------------------------------------------------------------------- storage


class Store:
    """Repositories with history on disk; every state file is replaced in one step."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.state = self.root / ".fakehub"
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], dict] = {}
        (self.state / "blobs").mkdir(parents=True, exist_ok=True)
        (self.state / "repos").mkdir(exist_ok=True)
        for file in sorted((self.state / "repos").glob("*.json")):
            repo = json.loads(file.read_text("utf-8"))
            self.repos[repo["kind"], repo["id"]] = repo
        for kind in KINDS:
            for folder in sorted((self.root / kind).glob("*/*")):
                if folder.is_dir():
                    self._import(kind, f"{folder.parent.name}/{folder.name}", folder)

    # -- contents

    def blob(self, sha256: str) -> Path:
        return self.state / "blobs" / sha256

    def put_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            fd, tmp = tempfile.mkstemp(dir=self.state)
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.replace(tmp, self.blob(sha256))
        return sha256

    def entry(self, sha256: str, path: str, sample: bytes, size: int) -> dict:
        lfs = size > 0 and self.is_lfs(path, sample, size)
        if lfs:
            oid = git_blob_id(lfs_pointer(sha256, size))
        else:
            oid = git_blob_id(self.blob(sha256).read_bytes())
        return {"sha256": sha256, "size": size, "lfs": lfs, "oid": oid}

    @staticmethod
    def is_lfs(path: str, sample: bytes, size: int) -> bool:
        return path.lower().endswith(tuple(LFS_SUFFIXES)) or size > 10 * CHUNK or b"\0" in sample

    def _import(self, kind: str, repo_id: str, folder: Path) -> None:
        files = {}
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            path = file.relative_to(folder).as_posix()
            digest = hashlib.sha256()
            with open(file, "rb") as f:
                sample = f.read(512)
                f.seek(0)
                while chunk := f.read(CHUNK):
                    digest.update(chunk)
            sha256 = digest.hexdigest()
            if not self.blob(sha256).exists():
                fd, tmp = tempfile.mkstemp(dir=self.state)
                os.close(fd)
                shutil.copyfile(file, tmp)
                os.replace(tmp, self.blob(sha256))
            files[path] = self.entry(sha256, path, sample, file.stat().st_size)
        repo = self.repos.get((kind, repo_id)) or self._new(kind, repo_id, private=False)
        head = repo["heads"].get("main")
        if head is None or repo["commits"][head]["files"] != files:
            self._add_commit(repo, "main", files, "files found in the folder", "")
        self._save(repo)

    # -- repositories

    def _new(self, kind: str, repo_id: str, private: bool) -> dict:
        repo = {
            "kind": kind, "id": repo_id, "private": private, "gated": False, "created": now(),
            "heads": {}, "tags": {}, "commits": {},
        }  # fmt: skip
        self.repos[kind, repo_id] = repo
        return repo

    def _save(self, repo: dict) -> None:
        target = self.state / "repos" / f"{repo['kind']}--{repo['id'].replace('/', '--')}.json"
        tmp = target.with_suffix(".tmp")
        tmp.write_text(json.dumps(repo, ensure_ascii=False), "utf-8")
        os.replace(tmp, target)

    def _add_commit(self, repo: dict, branch: str, files: dict, title: str, body: str) -> str:
        parent = repo["heads"].get(branch)
        text = json.dumps([repo["kind"], repo["id"], parent, title, body, files], sort_keys=True)
        oid = hashlib.sha1(text.encode()).hexdigest()
        repo["commits"][oid] = {
            "parent": parent,
            "title": title,
            "body": body,
            "date": now(),
            "files": files,
        }
        repo["heads"][branch] = oid
        return oid

    def create(self, kind: str, repo_id: str, private: bool) -> None:
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise HubError(409, "You already created this repo")
            repo = self._new(kind, repo_id, private)
            rules = "".join(
                f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES
            ).encode()
            files = {
                ".gitattributes": self.entry(
                    self.put_bytes(rules), ".gitattributes", rules[:512], len(rules)
                )
            }
            self._add_commit(repo, "main", files, "initial commit", "")
            self._show(repo)
            self._save(repo)

    def delete(self, kind: str, repo_id: str) -> None:
        with self.lock:
            self.get(kind, repo_id)
            del self.repos[kind, repo_id]
            (self.state / "repos" / f"{kind}--{repo_id.replace('/', '--')}.json").unlink(
                missing_ok=True
            )
            shutil.rmtree(self.root / kind / repo_id, ignore_errors=True)

    def get(self, kind: str, repo_id: str) -> dict:
        try:
            return self.repos[kind, repo_id]
        except KeyError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def resolve(self, repo: dict, revision: str) -> str:
        for table in (repo["heads"], repo["tags"]):
            name = re.sub(r"^refs/(heads|tags)/", "", revision)
            if name in table:
                return table[name]
        found = [oid for oid in repo["commits"] if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, repo: dict, branch: str, lines: list[dict]) -> str:
        """All of the operations or none of them."""
        with self.lock:
            if branch not in repo["heads"]:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = repo["heads"][branch]
            files = dict(repo["commits"][head]["files"])
            title, body = "", ""
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    title, body = value.get("summary") or "", value.get("description") or ""
                    parent = value.get("parentCommit")
                    if parent and not head.startswith(parent):
                        raise HubError(
                            412, "A commit has happened since. Please refresh and try again."
                        )
                    if not title.strip():
                        raise HubError(400, '"summary" is not allowed to be empty')
                    continue
                path = value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
                if not safe_path(path):
                    raise HubError(400, f"Invalid path in commit: {path!r}")
                if key == "file":
                    data = (
                        base64.b64decode(value["content"])
                        if value.get("encoding") == "base64"
                        else value["content"].encode()
                    )
                    sha256 = self.put_bytes(data)
                    files[path] = {
                        "sha256": sha256, "size": len(data), "lfs": False, "oid": git_blob_id(data),
                    }  # fmt: skip
                    if path == "README.md":
                        errors, _ = card_problems(data.decode("utf-8", "replace"))
                        if errors:
                            raise HubError(400, "; ".join(errors))
                elif key == "lfsFile":
                    sha256 = value["oid"]
                    if not re.fullmatch("[0-9a-f]{64}", sha256) or not self.blob(sha256).exists():
                        raise HubError(400, f"LFS object {sha256} for {path} was never uploaded")
                    size = self.blob(sha256).stat().st_size
                    files[path] = {
                        "sha256": sha256, "size": size, "lfs": True, "oid": git_blob_id(lfs_pointer(sha256, size)),
                    }  # fmt: skip
                elif key == "deletedFile":
                    if files.pop(path, None) is None:
                        raise HubError(
                            404, f"A file with this name doesn't exist: {path}", "EntryNotFound"
                        )
                elif key == "deletedFolder":
                    gone = [p for p in files if p.startswith(path + "/")]
                    if not gone:
                        raise HubError(
                            404, f"A file with this name doesn't exist: {path}/", "EntryNotFound"
                        )
                    for p in gone:
                        del files[p]
                else:
                    raise HubError(400, f"Unknown operation: {key}")
            clash = [p for p in files if any(p.startswith(q + "/") for q in files)]
            if clash:
                raise HubError(400, f"A file is in the way of a folder: {clash[0]}")
            oid = self._add_commit(repo, branch, files, title, body)
            if branch == "main":
                self._show(repo)
            self._save(repo)
            return oid

    def _show(self, repo: dict) -> None:
        """Make ROOT/<kind>/<id>/ look like main."""
        folder = self.root / repo["kind"] / repo["id"]
        files = repo["commits"][repo["heads"]["main"]]["files"]
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted((p for p in folder.rglob("*")), reverse=True):
            if old.is_dir():
                if not any(old.iterdir()):
                    old.rmdir()
            elif old.relative_to(folder).as_posix() not in files:
                old.unlink()
        for path, entry in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            tmp = target.with_name(target.name + ".fakehub-tmp")
            shutil.copyfile(self.blob(entry["sha256"]), tmp)
            os.replace(tmp, target)


# --------------------------------------------------------------------------- HTTP


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "fakehub"
    sys_version = ""
    server: FakeHub._Server

    def log_message(self, *args) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError, BrokenPipeError):
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = lambda self: self._serve()

    # -- request

    def _serve(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        self.segments = [unquote(s) for s in url.path.split("/") if s]
        self.query = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self.received: bytes | None = None
        self.drained = False
        self.mute = False
        self.record = {
            "method": self.command, "path": self.path, "auth": self._auth_kind(), "status": None, "sent": 0,
            "agent": self.headers.get("User-Agent", ""), "host": self.headers.get("Host", ""), "leak": False,
        }  # fmt: skip
        control = self.segments[:1] == ["__fakehub__"]
        if not control:
            hub._log(self.record)
            self._scan(self.path.encode())
        self.fault = None if control else hub._fault(self.command, self.path)
        fault = self.fault or {}
        try:
            if "delay" in fault:
                time.sleep(float(fault["delay"]))
            if "drop" in fault and not fault.get("then"):
                self._drain()
                self.record["status"] = "dropped"
                self.close_connection = True
                return
            if "status" in fault and not fault.get("then"):
                extra = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
                raise HubError(int(fault["status"]), "injected fault", None, **extra)
            if fault.get("then"):
                self.mute = True
            self._control() if control else self._route()
            if fault.get("then"):
                self.mute = False
                if "status" in fault:
                    raise HubError(int(fault["status"]), "injected fault after the work was done")
                self.record["status"] = "done, answer dropped"
                self.close_connection = True
        except HubError as exc:
            self.mute = False
            headers = dict(exc.headers)
            headers["X-Error-Message"] = exc.message.encode("ascii", "replace").decode()
            if exc.code:
                headers["X-Error-Code"] = exc.code
            self._send_json({"error": exc.message}, exc.status, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as exc:
            import traceback

            traceback.print_exc()
            self._send_json({"error": f"fakehub bug: {exc!r}"}, 500)

    def _auth_kind(self) -> str:
        hub, value = self.server.hub, self.headers.get("Authorization", "")
        if not value:
            return "none"
        token = value.removeprefix("Bearer ").strip()
        if token in hub.tokens or not (hub.tokens or hub.read_tokens):
            return "write"
        return "read" if token in hub.read_tokens else "invalid"

    def _need(self, level: str) -> None:
        kind = self.record["auth"]
        if kind == "invalid" or kind == "none":
            raise HubError(
                401,
                "Invalid credentials in Authorization header"
                if kind == "invalid"
                else "Invalid username or password.",
            )
        if level == "write" and kind == "read":
            raise HubError(403, "You don't have the required permissions: this token can only read")

    def _scan(self, data: bytes) -> None:
        if any(c in data for c in self.server.hub.canaries):
            self.record["leak"] = True

    def _chunks(self):
        """The request's body, whichever way it is framed; can be asked for once."""
        self.drained = True
        tail, keep = b"", max([len(c) for c in self.server.hub.canaries] or [1]) - 1
        for chunk in self._raw_chunks():
            self._scan(tail + chunk)
            tail = (tail + chunk)[-keep:] if keep else b""
            yield chunk

    def _raw_chunks(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            chunk = self.rfile.read(min(CHUNK, left))
            if not chunk:
                raise ConnectionError("the client went away")
            left -= len(chunk)
            yield chunk

    def _drain(self) -> None:
        if not self.drained:
            for _ in self._chunks():
                pass

    def _body(self) -> bytes:
        if self.received is None:
            self.received = b"".join(self._chunks())
        return self.received

    def _json(self) -> dict:
        try:
            value = json.loads(self._body() or b"{}")
        except ValueError:
            raise HubError(400, "The request's body is not JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "The request's body is not an object")
        return value

    # -- answer

    def _begin(self, status: int, headers: dict[str, str], length: int) -> bool:
        """Send the head; True if a body may follow."""
        self._drain()
        if self.mute:
            return False
        self.record["status"] = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        return self.command != "HEAD"

    def _send_bytes(self, data: bytes, status: int = 200, headers: dict | None = None) -> None:
        if self._begin(
            status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}, len(data)
        ):
            self.wfile.write(data)
            self.record["sent"] += len(data)

    def _send_json(self, value, status: int = 200, headers: dict | None = None) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self._send_bytes(
            data, status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        )

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        size = file.stat().st_size
        start, stop, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if asked and any(asked.groups()):
            first, last = asked.groups()
            if first:
                start, stop = int(first), min(size, int(last) + 1) if last else size
            else:
                start = max(0, size - int(last))
            if start >= size or start >= stop:
                raise HubError(
                    416, "Range not satisfiable", None, **{"Content-Range": f"bytes */{size}"}
                )
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        fault = self.fault or {}
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if not self._begin(status, headers, stop - start):
            return
        with open(file, "rb") as f:
            f.seek(start)
            at = start
            while at < stop:
                chunk = f.read(min(CHUNK, stop - at))
                if "flip" in fault and at <= int(fault["flip"]) < at + len(chunk):
                    changed = bytearray(chunk)
                    changed[int(fault["flip"]) - at] ^= 1
                    chunk = bytes(changed)
                if "cut" in fault and at + len(chunk) - start > int(fault["cut"]):
                    self.wfile.write(chunk[: max(0, int(fault["cut"]) - (at - start))])
                    self.record["status"] = "cut"
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.wfile.write(chunk)
                self.record["sent"] += len(chunk)
                at += len(chunk)

    # -- routes

    def _control(self) -> None:
        hub, what = self.server.hub, self.segments[1:]
        if what == ["log"]:
            with hub.lock:
                self._send_json(list(hub.log))
        elif what == ["faults"] and self.command == "POST":
            hub.set_faults(json.loads(self._body() or b"[]"))
            self._send_json({"faults": len(hub.faults)})
        elif what == ["reset"] and self.command == "POST":
            with hub.lock:
                hub.log.clear()
                hub.faults.clear()
            self._send_json({})
        else:
            raise HubError(404, "fakehub has no such control")

    def _route(self) -> None:
        seg, method, store = self.segments, self.command, self.server.hub.store
        if self.headers.get("Host", "").startswith("datasets-server."):
            raise HubError(404, "no viewer here")
        if seg[:1] == ["__lfs__"]:
            return self._lfs_transfer(seg[1:])
        if seg[:1] == ["__cdn__"] and len(seg) == 2 and re.fullmatch("[0-9a-f]{64}", seg[1]):
            if not store.blob(seg[1]).exists():
                raise HubError(404, "no such object")
            return self._send_file(store.blob(seg[1]), {"ETag": f'"{seg[1]}"'})
        if seg[:1] == ["api"]:
            return self._api(seg[1:], method)
        kind, rest = ("datasets", seg[1:]) if seg[:1] == ["datasets"] else ("models", seg)
        if (
            len(rest) >= 2
            and rest[1].endswith(".git")
            and rest[2:] == ["info", "lfs", "objects", "batch"]
        ):
            return self._lfs_batch(kind, f"{rest[0]}/{rest[1][:-4]}")
        if len(rest) >= 5 and rest[2] in ("resolve", "raw") and method in ("GET", "HEAD"):
            return self._resolve(kind, f"{rest[0]}/{rest[1]}", rest[3], "/".join(rest[4:]))
        if len(rest) >= 3 and rest[1] in (
            "resolve",
            "raw",
        ):  # a name without a user: none are kept here
            raise HubError(404, "Repository not found", "RepoNotFound")
        raise HubError(404, f"fakehub has no page {self.path}")

    def _repo(self, kind: str, repo_id: str, write: bool = False) -> dict:
        try:
            repo = self.server.hub.store.get(kind, repo_id)
        except HubError:
            if self.record["auth"] in ("none", "invalid"):  # do not tell strangers what exists
                raise HubError(401, "Invalid username or password.", "RepoNotFound") from None
            raise
        if repo["private"] and self.record["auth"] in ("none", "invalid"):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if write:
            self._need("write")
        return repo

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        hub = self.server.hub
        repo = self._repo(kind, repo_id)
        oid = hub.store.resolve(repo, revision)
        entry = repo["commits"][oid]["files"].get(path)
        common = {"X-Repo-Commit": oid}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **common)
        etag = entry["sha256"] if entry["lfs"] else entry["oid"]
        name = quote(path.rsplit("/", 1)[-1])
        common |= {"ETag": f'"{etag}"', "Content-Disposition": f"inline; filename*=UTF-8''{name}"}
        if (
            entry["lfs"] and hub.cdn
        ):  # another host name, as the real one has: a token must not follow
            port = self.server.server_address[1]
            common |= {
                "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"]),
                "Location": f"http://localhost:{port}/__cdn__/{entry['sha256']}",
            }  # fmt: skip
            return self._send_bytes(b"", 302, common)
        self._send_file(hub.store.blob(entry["sha256"]), common)

    def _lfs_batch(self, kind: str, repo_id: str) -> None:
        hub = self.server.hub
        repo = self._repo(kind, repo_id, write=True)
        assert repo
        base, answer = hub.url, []
        for obj in self._json().get("objects", []):
            oid, size = str(obj["oid"]), int(obj["size"])
            item = {"oid": oid, "size": size}
            if not re.fullmatch("[0-9a-f]{64}", oid):
                item["error"] = {"code": 422, "message": "not a sha256"}
            elif not hub.store.blob(oid).exists():
                upload: dict = {"href": f"{base}/__lfs__/{oid}?size={size}"}
                if hub.multipart and size > hub.multipart:
                    count = -(-size // hub.multipart)
                    upload["href"] = f"{base}/__lfs__/{oid}/complete?size={size}"
                    upload["header"] = {"chunk_size": str(hub.multipart)} | {
                        f"{i:05d}": f"{base}/__lfs__/{oid}/part/{i}" for i in range(1, count + 1)
                    }
                item["actions"] = {"upload": upload, "verify": {"href": f"{base}/__lfs__/verify"}}
            answer.append(item)
        self._send_json(
            {"transfer": "basic", "objects": answer},
            200,
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def _lfs_transfer(self, seg: list[str]) -> None:
        store = self.server.hub.store
        if seg == ["verify"]:
            asked = self._json()
            file = store.blob(str(asked.get("oid", "")).replace("/", "_"))
            if not file.is_file() or file.stat().st_size != asked.get("size"):
                raise HubError(404, "object missing or of another size")
            return self._send_json({})
        oid = seg[0] if seg else ""
        if not re.fullmatch("[0-9a-f]{64}", oid):
            raise HubError(404, "no such object")
        parts = store.state / "parts" / oid
        if len(seg) == 3 and seg[1] == "part" and self.command == "PUT" and seg[2].isdigit():
            parts.mkdir(parents=True, exist_ok=True)
            digest, _ = self._save_stream(parts / f"{int(seg[2]):05d}")
            return self._send_bytes(b"", 200, {"ETag": f'"{digest}"'})
        if len(seg) == 2 and seg[1] == "complete" and self.command == "POST":
            wanted = self._json().get("parts", [])
            joined = store.state / "parts" / f"{oid}.joined"
            digest = hashlib.sha256()
            with open(joined, "wb") as out:
                for part in wanted:
                    data = (parts / f"{int(part['partNumber']):05d}").read_bytes()
                    digest.update(data)
                    out.write(data)
            if digest.hexdigest() != oid:
                joined.unlink()
                raise HubError(400, "the parts do not make up the announced object")
            os.replace(joined, store.blob(oid))
            shutil.rmtree(parts, ignore_errors=True)
            return self._send_json({})
        if len(seg) == 1 and self.command == "PUT":
            fd, tmp = tempfile.mkstemp(dir=store.state)
            os.close(fd)
            try:
                digest, _ = self._save_stream(Path(tmp))
                if digest != oid:
                    raise HubError(400, f"received {digest}, announced {oid}")
                os.replace(tmp, store.blob(oid))
            finally:
                Path(tmp).unlink(missing_ok=True)
            return self._send_bytes(b"")
        raise HubError(404, "no such transfer")

    def _save_stream(self, file: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with open(file, "wb") as out:
            for chunk in self._chunks():
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        return digest.hexdigest(), size

    def _api(self, seg: list[str], method: str) -> None:
        hub, store = self.server.hub, self.server.hub.store
        if seg == ["whoami-v2"]:
            self._need("read")
            role = self.record["auth"]
            return self._send_json({
                "type": "user", "id": "1", "name": hub.user, "fullname": hub.user, "isPro": False, "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
            })  # fmt: skip
        if seg[:1] == ["telemetry"]:
            return self._send_json({})
        if seg == ["validate-yaml"]:
            errors, warnings = card_problems(self._json().get("content", ""))
            answer = {
                "errors": [{"message": m} for m in errors],
                "warnings": [{"message": m} for m in warnings],
            }
            return self._send_json(answer, 400 if errors else 200)
        if seg[:1] == ["repos"] and seg[1:] and method in ("POST", "DELETE"):
            return self._repos(seg[1], method)
        if len(seg) == 1 and seg[0] in KINDS and method == "GET":
            return self._list(seg[0])
        if len(seg) < 3 or seg[0] not in KINDS:
            raise HubError(404, f"fakehub has no page {self.path}")
        kind, repo_id, what, rest = (
            seg[0],
            f"{seg[1]}/{seg[2]}",
            (seg[3] if seg[3:] else ""),
            seg[4:],
        )
        if method == "GET":
            repo = self._repo(kind, repo_id)
            if what in ("", "revision"):
                return self._send_json(
                    self._info(repo, store.resolve(repo, rest[0] if rest else "main"))
                )
            if what == "tree" and rest:
                return self._tree(repo, rest[0], "/".join(rest[1:]).strip("/"))
            if what == "refs":
                return self._send_json({
                    "branches": [self._ref("heads", n, o) for n, o in repo["heads"].items()],
                    "tags": [self._ref("tags", n, o) for n, o in repo["tags"].items()],
                    "converts": [], "pullRequests": [],
                })  # fmt: skip
            if what == "commits" and rest:
                return self._send_json(self._commits(repo, store.resolve(repo, rest[0])))
            if what == "auth-check":
                return self._send_json({})
            if what == "discussions":
                return self._send_json({"discussions": [], "count": 0, "start": 0})
        elif method == "POST" and what == "paths-info" and rest:
            repo = self._repo(kind, repo_id)
            oid = store.resolve(repo, rest[0])
            files, found = repo["commits"][oid]["files"], []
            for path in self._paths():
                path = path.strip("/")
                if path in files:
                    found.append(self._file(path, files[path], repo["commits"][oid], oid))
                elif any(p.startswith(path + "/") for p in files):
                    found.append(self._folder(path, files))
            return self._send_json(found)
        elif method == "POST" and what == "preupload" and rest:
            return self._preupload(self._repo(kind, repo_id, write=True), rest[0])
        elif method == "POST" and what == "commit" and rest:
            return self._commit(self._repo(kind, repo_id, write=True), rest[0])
        elif what in ("branch", "tag") and rest and method in ("POST", "DELETE"):
            return self._name_revision(self._repo(kind, repo_id, write=True), what, rest[0], method)
        elif method == "PUT" and what == "settings":
            repo = self._repo(kind, repo_id, write=True)
            with store.lock:
                repo.update({k: v for k, v in self._json().items() if k in ("private", "gated")})
                store._save(repo)
            return self._send_json({"private": repo["private"]})
        raise HubError(404, f"fakehub has no page {method} {self.path}")

    def _repos(self, verb: str, method: str) -> None:
        hub, store, asked = self.server.hub, self.server.hub.store, self._json()
        self._need("write")
        kind = (asked.get("type") or "model") + "s"
        if kind not in KINDS:
            raise HubError(400, f"fakehub keeps no {kind}")
        name = str(asked.get("name", ""))
        owner = asked.get("organization") or hub.user
        if "/" in name:
            owner, name = name.split("/", 1)
        repo_id = f"{owner}/{name}"
        if verb == "create" and method == "POST":
            if not NAME.match(name) or not NAME.match(owner):
                raise HubError(400, f"Invalid repo name: {repo_id}")
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            url = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
            try:
                store.create(kind, repo_id, private)
            except HubError as exc:
                return self._send_json({"error": exc.message, "url": url}, exc.status)
            return self._send_json({"url": url, "name": repo_id, "id": repo_id})
        if verb == "delete" and method == "DELETE":
            store.delete(kind, repo_id)
            return self._send_json({})
        raise HubError(404, f"fakehub has no page {self.path}")

    def _list(self, kind: str) -> None:
        store, known = self.server.hub.store, self.record["auth"] in ("read", "write")
        rows = [
            self._info(r, r["heads"]["main"])
            for (k, i), r in sorted(store.repos.items())
            if k == kind and (known or not r["private"])
            and self.query.get("search", "").lower() in i.lower()
            and self.query.get("author", i.split("/")[0]) == i.split("/")[0]
        ]  # fmt: skip
        self._send_json(rows[: int(self.query.get("limit", 1000))])

    def _info(self, repo: dict, oid: str) -> dict:
        commit, store = repo["commits"][oid], self.server.hub.store
        siblings = []
        for path, entry in sorted(commit["files"].items()):
            row = {"rfilename": path}
            if self.query.get("blobs"):
                row |= {"size": entry["size"], "blobId": entry["oid"]}
                if entry["lfs"]:
                    row["lfs"] = {
                        "sha256": entry["sha256"],
                        "size": entry["size"],
                        "pointerSize": 134,
                    }
            siblings.append(row)
        card = {}
        readme = commit["files"].get("README.md")
        if readme:
            text = store.blob(readme["sha256"]).read_text("utf-8", "replace")
            if match := re.match(r"^---\s*\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE):
                import yaml

                try:
                    card = yaml.safe_load(match.group(1))
                except yaml.YAMLError:
                    card = {}
                if not isinstance(card, dict):
                    card = {}
        return {
            "_id": hashlib.sha1(repo["id"].encode()).hexdigest()[:24], "id": repo["id"], "modelId": repo["id"],
            "author": repo["id"].split("/")[0], "sha": oid, "private": repo["private"], "gated": repo["gated"],
            "disabled": False, "lastModified": commit["date"], "createdAt": repo["created"], "downloads": 0,
            "likes": 0, "tags": [t for t in (card.get("tags") or []) if isinstance(t, str)], "cardData": card,
            "library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag"),
            "usedStorage": sum(e["size"] for e in commit["files"].values()), "siblings": siblings,
        }  # fmt: skip

    def _file(self, path: str, entry: dict, commit: dict, oid: str) -> dict:
        row = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
        if entry["lfs"]:
            row["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
        if self.query.get("expand", "").lower() == "true":
            row["lastCommit"] = {"id": oid, "title": commit["title"], "date": commit["date"]}
        return row

    @staticmethod
    def _folder(path: str, files: dict) -> dict:
        inside = sorted((p, e["oid"]) for p, e in files.items() if p.startswith(path + "/"))
        return {
            "type": "directory",
            "path": path,
            "size": 0,
            "oid": hashlib.sha1(repr(inside).encode()).hexdigest(),
        }

    def _tree(self, repo: dict, revision: str, under: str) -> None:
        hub = self.server.hub
        oid = hub.store.resolve(repo, revision)
        commit = repo["commits"][oid]
        files, prefix = commit["files"], under + "/" if under else ""
        inside = [p for p in files if p.startswith(prefix)]
        if under and not inside:
            raise HubError(
                404,
                f"{under} does not exist on {revision}",
                "EntryNotFound",
                **{"X-Repo-Commit": oid},
            )
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        folders = set()
        for path in inside:
            parts = path[len(prefix) :].split("/")[:-1]
            folders |= {
                prefix + "/".join(parts[: i + 1])
                for i in range(len(parts) if deep else min(1, len(parts)))
            }
        rows = [self._folder(f, files) for f in sorted(folders)]
        rows += [
            self._file(p, files[p], commit, oid)
            for p in sorted(inside)
            if deep or "/" not in p[len(prefix) :]
        ]
        start, size = (
            int(self.query.get("cursor", 0)),
            min(int(self.query.get("limit", hub.page)), hub.page),
        )
        headers = {}
        if start + size < len(rows):
            base = hub.url + urlsplit(self.path).path
            keep = "&".join(f"{k}={quote(v)}" for k, v in self.query.items() if k != "cursor")
            headers["Link"] = f'<{base}?{keep}&cursor={start + size}>; rel="next"'
        self._send_json(rows[start : start + size], 200, headers)

    @staticmethod
    def _ref(where: str, name: str, oid: str) -> dict:
        return {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid}

    def _commits(self, repo: dict, oid: str | None) -> list[dict]:
        rows = []
        while oid:
            commit = repo["commits"][oid]
            rows.append({"id": oid, "title": commit["title"], "message": commit["body"], "date": commit["date"],
                         "authors": [{"user": self.server.hub.user}]})  # fmt: skip
            oid = commit["parent"]
        return rows

    def _paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return [str(p) for p in self._json().get("paths", [])]
        form = parse_qs(self._body().decode())
        self.query.setdefault("expand", form.get("expand", ["false"])[-1])
        return form.get("paths", [])

    def _preupload(self, repo: dict, revision: str) -> None:
        store = self.server.hub.store
        files = repo["commits"][store.resolve(repo, revision)]["files"]
        # Clients after 1.10 no longer know the plain transfer of large files; they get everything in the commit.
        client = re.search(r"huggingface_hub/(\d+)\.(\d+)", self.record["agent"]) or re.search(
            r"hf_hub/(\d+)\.(\d+)", self.record["agent"]
        )
        inline = bool(client) and (int(client[1]), int(client[2])) > (1, 10)
        answer = []
        for item in self._json().get("files", []):
            path, size = item["path"], int(item["size"])
            lfs = not inline and store.is_lfs(
                path, base64.b64decode(item.get("sample") or ""), size
            )
            old = files.get(path)
            known = old and (old["sha256"] if old["lfs"] else old["oid"])
            answer.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
                           "oid": known or None})  # fmt: skip
        self._send_json({"files": answer})

    def _commit(self, repo: dict, branch: str) -> None:
        hub, lines = self.server.hub, []
        for raw in self._body().splitlines():
            if raw.strip():
                line = json.loads(raw)
                if line.get("key") == "file":
                    self._scan(base64.b64decode(line["value"]["content"]))
                lines.append(line)
        if "create_pr" in self.query:
            raise HubError(400, "fakehub has no pull requests")
        oid = hub.store.commit(repo, branch, lines)
        prefix = "datasets/" if repo["kind"] == "datasets" else ""
        self._send_json({
            "success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{prefix}{repo['id']}/commit/{oid}",
            "hookOutput": "",
        })  # fmt: skip

    def _name_revision(self, repo: dict, what: str, name: str, method: str) -> None:
        store, asked = self.server.hub.store, self._json()
        with store.lock:
            table = repo["heads"] if what == "branch" else repo["tags"]
            if method == "DELETE":
                if name == "main" and what == "branch":
                    raise HubError(403, "main cannot be deleted")
                if table.pop(name, None) is None:
                    raise HubError(404, f"no such {what}: {name}", "RevisionNotFound")
            else:
                start = asked.get("startingPoint", "main") if what == "branch" else name
                new = name if what == "branch" else asked.get("tag", "")
                if new in table:
                    raise HubError(409, f"Reference already exists: {new}")
                table[new] = store.resolve(repo, start)
            store._save(repo)
        self._send_json({})


# --------------------------------------------------------------------------- the hub


class FakeHub:
    class _Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64
        hub: FakeHub

        def handle_error(self, request, client_address) -> None:
            if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
                super().handle_error(request, client_address)

    def __init__(self, root, port: int = 0, tokens=(), read_tokens=(), canaries=(), faults=(), *, user: str = "tester",
                 cdn: bool = False, multipart: int = 0, page: int = 1000):  # fmt: skip
        self.store = Store(Path(root))
        self.tokens, self.read_tokens = set(tokens), set(read_tokens)
        self.canaries = [c.encode() if isinstance(c, str) else c for c in canaries]
        self.user, self.cdn, self.multipart, self.page = user, cdn, multipart, page
        self.lock = threading.Lock()
        self.log: list[dict] = []
        self.faults: list[dict] = []
        self.set_faults(faults)
        self.server = self._Server(("127.0.0.1", port), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread: threading.Thread | None = None

    def __enter__(self) -> FakeHub:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self.server.shutdown()
        self.server.server_close()
        if self.thread:
            self.thread.join()

    def env(self, cache, token: str | None = None) -> dict[str, str]:
        """The environment for a child process that must see this hub and no other."""
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        env |= {
            "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip
        if token:
            env["HF_TOKEN"] = token
        return env

    def set_faults(self, rules) -> None:
        parsed = [parse_fault(r) if isinstance(r, str) else dict(r) for r in rules]
        for rule in parsed:
            rule.setdefault("times", 1)
            rule.setdefault("after", 0)
        with self.lock:
            self.faults = parsed

    def requests(self, method: str = "", path: str = "") -> list[dict]:
        with self.lock:
            return [r for r in self.log if method in ("", r["method"]) and path in r["path"]]

    def leaks(self) -> list[dict]:
        with self.lock:
            return [r for r in self.log if r["leak"]]

    def _log(self, record: dict) -> None:
        with self.lock:
            record["n"] = len(self.log)
            self.log.append(record)

    def _fault(self, method: str, path: str) -> dict | None:
        with self.lock:
            for rule in self.faults:
                if int(rule["times"]) == 0 or rule.get("method", "*") not in ("*", method):
                    continue
                if not re.search(rule.get("path", ""), path):
                    continue
                if int(rule["after"]) > 0:
                    rule["after"] = int(rule["after"]) - 1
                    continue
                if int(rule["times"]) > 0:
                    rule["times"] = int(rule["times"]) - 1
                return rule
        return None


def parse_fault(text: str) -> dict:
    method, path, *rest = text.split()
    rule: dict = {"method": method, "path": path}
    for item in rest:
        key, value = item.split("=", 1)
        rule[key] = float(value) if key == "delay" else int(value)
    return rule


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--token", action="append", default=[], help="may read and write (default: any token may)"
    )
    parser.add_argument("--read-token", action="append", default=[])
    parser.add_argument(
        "--canary",
        action="append",
        default=[],
        help="mark requests whose URL or body has this text",
    )
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument(
        "--cdn", action="store_true", help="send large files through a second host name"
    )
    parser.add_argument("--multipart", type=int, default=0, metavar="BYTES")
    args = parser.parse_args()
    hub = FakeHub(args.root, args.port, args.token, args.read_token, args.canary, args.fault, cdn=args.cdn,
                  multipart=args.multipart)  # fmt: skip
    print(f"HF_ENDPOINT={hub.url}", flush=True)
    try:
        hub.server.serve_forever(0.2)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
