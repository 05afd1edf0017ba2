"""A small hub on this machine: it speaks the protocol of uploads, and keeps what is committed."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Hub:
    """`with Hub() as hub:` serves at `hub.url`. `refuse` makes it answer 403 to commits.

    As on the real one, a repository begins with the branch main, and what is sent to another branch that nobody has
    made is answered by 404.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}  # what created them
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}  # by repository and branch
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.cards: list[str] = []  # whose metadata it was asked to look at
        self.refuse = False

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def branches_of(self, repository: str) -> set[str]:
        return {branch for name, branch in self.files if name == repository}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self, value: Any, code: int = 200, error: str = "") -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                repository = "/".join(self.path.split("/")[3:5])
                self._answer({"id": repository, "sha": "0" * 40, "siblings": [], "private": True})
            else:
                self._answer({"error": "not here"}, 404)

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            body, parts = self._body(), self.path.partition("?")[0].split("/")
            if self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif self.path.endswith("/info/lfs/objects/batch"):
                self._answer(
                    {"transfer": "basic", "objects": [self._upload(one) for one in json.loads(body)["objects"]]}
                )
            elif self.path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                self._answer({"errors": [], "warnings": []})
            elif "branch" in parts:
                self._branch("/".join(parts[3:5]), parts[-1])
            elif parts[-1] not in hub.branches_of("/".join(parts[3:5])):
                self._answer({"error": f"Invalid rev id: {parts[-1]}"}, 404, "RevisionNotFound")
            elif "preupload" in parts:
                files = json.loads(body)["files"]
                self._answer({"files": [self._mode(one) for one in files]})
            elif "commit" in parts and hub.refuse:
                self._answer({"error": "no space is left for you"}, 403)
            elif "commit" in parts:
                self._commit("/".join(parts[3:5]), parts[-1], body)
            else:
                self._answer({"error": self.path}, 404)

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.repositories.setdefault(name, asked)
            hub.files.setdefault((name, "main"), {})
            self._answer({"url": f"{hub.url}/{name}", "name": name, "id": name})

        def _branch(self, repository: str, name: str) -> None:
            is_new = name not in hub.branches_of(repository)
            hub.files.setdefault((repository, name), {**hub.files[repository, "main"]})
            self._answer({}, 200 if is_new else 409)

        def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
            is_large = file["path"].endswith(".safetensors")
            return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}

        def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
            known = {"oid": file["oid"], "size": file["size"]}
            if file["oid"] in hub.objects:
                return known
            return known | {"actions": {"upload": {"href": f"{hub.url}/objects/{file['oid']}"}}}

        def _commit(self, repository: str, revision: str, body: bytes) -> None:
            files = hub.files[repository, revision]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
            self._answer({"commitUrl": f"{hub.url}/{repository}/commit/{'1' * 40}", "commitOid": "1" * 40})

    return Handler
