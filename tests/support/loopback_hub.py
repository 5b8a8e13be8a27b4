"""A model hub on this machine's loopback address, as much of it as huggingface_hub asks for, with faults on demand."""

import hashlib
import io
import json
import socket
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT, OLD_COMMIT = "c" * 40, "0" * 40


class LoopbackHub:
    """Serves one repository: files {name: bytes} at COMMIT (branch main), and old_files at OLD_COMMIT (tag v1).

    asked: every request, as "METHOD path". ranges: the Range headers. cut: {name: bytes} to break off after, once;
    with hang=True the connection then stays open and silent. status, error: answer every request with those.
    faults: {part of a "METHOD path": what to do with the handler instead of answering}.
    """

    def __init__(self, repo: str, files: dict[str, bytes], old_files: dict[str, bytes] | None = None, kind="models"):
        self.repo, self.trees = repo, {COMMIT: files, OLD_COMMIT: old_files or {}}
        self.api = f"/api/{kind}/{repo}/"
        self.resolve = f"/{repo}/resolve/" if kind == "models" else f"/{kind}/{repo}/resolve/"
        self.names = {"main": COMMIT, "v1": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.asked, self.ranges, self.cut, self.hang, self.status, self.error = [], [], {}, False, 200, ""
        self.cut_now, self.closing = threading.Event(), threading.Event()
        self.faults = {}

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        api, files = hub.api, hub.resolve
        if path + "/" == api:
            path = f"{api}revision/main"
        for part, fault in hub.faults.items():
            if part in f"{self.command} {path}":
                return fault(self)
        if hub.status != 200:
            return self.answer(hub.status, b"", {"X-Error-Code": hub.error})
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            body = hub.trees[hub.names[revision]].get(name)
            if body is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.send_file(name, body, hub.names[revision])
        if not path.startswith(api):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/models/") else {})
        kind, _, revision = path.removeprefix(api).partition("/")
        if revision not in hub.names:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        tree = hub.trees[hub.names[revision]]
        if kind == "tree":
            entries = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in tree.items()]
            return self.answer(200, json.dumps(entries).encode())
        info = {"id": hub.repo, "sha": hub.names[revision], "siblings": [{"rfilename": n} for n in tree]}
        return self.answer(200, json.dumps(info).encode())

    do_HEAD = do_GET

    def do_POST(self):
        """paths-info, which huggingface_hub's file system asks before it opens a file."""
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"POST {path}")
        tree = self.hub.trees[self.hub.names[path.rpartition("/")[2]]]
        names = json.loads(asked)["paths"]
        found = [{"type": "file", "path": n, "size": len(tree[n]), "oid": "0" * 40} for n in names if n in tree]
        self.answer(200, json.dumps(found).encode())

    def send_file(self, name: str, body: bytes, commit: str):
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if self.command == "GET" and "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, status, whole = int(first), 206, len(body)
            body = body[: int(last) + 1] if last else body
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{whole}"
        stop = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self.answer(status, body[start:], headers, stop)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.hub.cut_now.set()
            self.close_connection = True
            if self.hub.hang:
                self.hub.closing.wait(60)

    def log_message(self, *_):
        pass


# ---- faults ----------------------------------------------------------------------------------------------------------


def silence(handler: _Handler):
    """Never answer."""
    handler.close_connection = True
    handler.hub.closing.wait(60)


def trickle(handler: _Handler):
    """Answer with a header that grows by one letter every tenth of a second, and never ends."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    with suppress(OSError):
        while not handler.hub.closing.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()


def reset(handler: _Handler):
    """Break the connection off."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.wfile = io.BytesIO()


def answer(status: int, body: bytes = b"", **headers: str):
    """Always this answer; in the names of headers, _ stands for -."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, body, headers)


def endless(handler: _Handler):
    """A body without end, whose length was not announced."""
    handler.close_connection = True
    headers = {"ETag": '"0123"', "X-Repo-Commit": COMMIT}
    handler.send_response(200)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()
    with suppress(OSError):
        while handler.command == "GET" and not handler.hub.closing.is_set():
            handler.wfile.write(bytes(1 << 20))
