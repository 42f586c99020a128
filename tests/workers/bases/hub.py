"""A hub of one repository at one commit: what huggingface_hub asks for, and no more."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a folder; `asked` are the requests' paths."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(has_body=False)

            def do_GET(self):
                self.answer(has_body=True)

            def answer(self, has_body):
                hub.asked.append(self.path)
                content = hub.content(self.path.partition("?")[0])
                body = content or b""
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                if has_body:
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def content(self, path):
        if path == "/":
            return b"a hub"
        if path.startswith(f"/api/models/{NAME}"):
            names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.*"))
            entries = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
            siblings = [{"rfilename": name} for name in names]
            about = {"id": NAME, "sha": COMMIT, "siblings": siblings}
            return json.dumps(entries if "/tree/" in path else about).encode()
        file = self.folder / path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        return file.read_bytes() if file.is_file() else None

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
