"""A stand-in for Google Cloud Storage: its JSON interface over HTTP, with objects in memory.

`gcsfs`, orbax and tensorstore talk to it as they do to the real one, from whatever process, until `lost`.
"""

import contextlib
import email
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECTS = re.compile(r"/(?:(?:upload|download)/)?(?:storage/v1/)?b/([^/]+)(?:/o(?:/([^/]+))?)?")
COPY = re.compile(r"/storage/v1/b/[^/]+/o/([^/]+)/(?:rewriteTo|copyTo)/b/[^/]+/o/([^/]+)")


class Store(ThreadingHTTPServer):
    """The server; `objects` maps names to (generation, bytes), whatever the bucket is called."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads, self.generation = {}, {}, 1
        self.lock, self.lost = threading.Lock(), False

    def handle_error(self, request, client_address):
        """A client that hangs up before it has read the answer, as some do, is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def environment(self):
        """What has gcsfs, google-cloud-storage and tensorstore use this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x", "GOOGLE_CLOUD_PROJECT": "p",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }  # fmt: skip

    def files(self, folder=""):
        """Names and bytes below a folder, but for the markers of folders."""
        objects = sorted(self.objects.items())
        return {
            name: data for name, (_, data) in objects if name.startswith(folder) and name[-1] != "/"
        }

    def copy(self, folder, path):
        """Writes what is below a folder to one of the file system."""
        for name, data in self.files(f"{folder}/").items():
            file = path / name.removeprefix(f"{folder}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


@contextlib.contextmanager
def serving():
    """A `Store` that answers until the end of the statement."""
    with Store() as store:
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: without this each answer waits for an acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, *words):
        del words

    def parse_request(self):
        """Answers at once for the one bucket that there is not, `nowhere`; not at all if it is lost."""
        parsed = super().parse_request()
        if self.server.lost:
            self.close_connection = True
            return False
        if parsed and "/b/nowhere/" in self.path:
            self.close_connection = True  # a body may follow
            self._error(404)
            return False
        return parsed

    def _answer(self, code, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers |= {"Content-Type": "application/json"}
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD" and code != 304:  # whose body a client takes for its next answer
            self.wfile.write(body)

    def _error(self, code):
        self._answer(code, {"error": {"code": code, "message": f"error {code}", "errors": []}})

    def _resource(self, name):
        generation, data = self.server.objects[name]
        return {
            "kind": "storage#object", "bucket": self.bucket, "name": name, "size": str(len(data)),
            "id": name, "generation": str(generation), "metageneration": "1", "etag": str(generation),
            "storageClass": "STANDARD", "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z", "contentType": "application/octet-stream",
        }  # fmt: skip

    def _parse(self, path):
        split = urlsplit(path)
        self.query = dict(parse_qsl(split.query, keep_blank_values=True))
        found = OBJECTS.fullmatch(split.path)
        self.bucket = found[1] if found else "bucket"
        self.name = unquote(found[2]) if found and found[2] else None
        return split.path

    def _matches(self, name):
        """Whether the preconditions of the request hold."""
        now = self.server.objects.get(name, (0,))[0]
        wanted = self.query.get("ifGenerationMatch")
        unwanted = self.query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == now) and (unwanted is None or int(unwanted) != now)

    def do_GET(self):
        objects = self.server.objects
        path = self._parse(self.path)
        with self.server.lock:
            if self.name is not None:
                if self.name not in objects:
                    return self._error(404)
                if not self._matches(self.name):
                    return self._error(304 if "ifGenerationNotMatch" in self.query else 412)
                if self.query.get("alt") != "media" and not path.startswith("/download"):
                    return self._answer(200, self._resource(self.name))
                generation, data = objects[self.name]
                headers = {"X_Goog_Generation": generation, "Content_Type": "binary/octet-stream"}
                asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
                if not asked:
                    return self._answer(200, data, **headers)
                first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
                last = int(asked[2]) if asked[1] and asked[2] else len(data) - 1
                if first >= len(data):
                    return self._error(416)
                last = min(last, len(data) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
                return self._answer(206, data[first : last + 1], **headers)
            if "/o" not in path:
                return self._answer(200, {"kind": "storage#bucket", "name": self.bucket})
            prefix, mark = self.query.get("prefix", ""), self.query.get("delimiter")
            items, prefixes = [], set()
            for name in sorted(objects):
                if name.startswith(prefix):
                    head, cut, _ = name[len(prefix) :].partition(mark or "\0")
                    if mark and cut and prefix + head + cut != name:
                        prefixes.add(prefix + head + cut)
                    elif (
                        not mark or not cut or self.query.get("includeTrailingDelimiter") == "true"
                    ):
                        items.append(self._resource(name))
                    else:
                        prefixes.add(name)
            self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

    do_HEAD = do_GET

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _put(self, name, data):
        if not self._matches(name):
            return self._error(412)
        self.server.generation += 1
        self.server.objects[name] = (self.server.generation, data)
        return self._answer(200, self._resource(name))

    def do_POST(self):
        body, path = self._body(), self._parse(self.path)
        kind = self.query.get("uploadType")
        with self.server.lock:
            if path.startswith("/batch"):
                return self._batch(body)
            if "upload_id" in self.query:  # gcsfs posts what others put
                return self._resume(body)
            if copy := COPY.fullmatch(path):
                source, target = unquote(copy[1]), unquote(copy[2])
                if source not in self.server.objects:
                    return self._error(404)
                self.server.generation += 1
                data = self.server.objects[source][1]
                self.server.objects[target] = (self.server.generation, data)
                return self._answer(200, {"done": True, "resource": self._resource(target)})
            if kind == "media":
                return self._put(self.query["name"], body)
            if kind == "multipart":
                described, data = _parts(self.headers["Content-Type"], body)
                return self._put(self.query.get("name") or json.loads(described)["name"], data)
            if kind == "resumable":
                name = self.query.get("name") or json.loads(body)["name"]
                number = str(len(self.server.uploads))
                self.server.uploads[number] = [name, b""]
                address = f"http://{self.headers['Host']}/upload/storage/v1/b/{self.bucket}/o"
                keep = "".join(f"&{k}={v}" for k, v in self.query.items() if k.startswith("if"))
                where = f"{address}?uploadType=resumable&upload_id={number}{keep}"
                return self._answer(200, b"", Location=where)
            self._error(400)

    def do_PUT(self):
        body = self._body()
        self._parse(self.path)
        with self.server.lock:
            self._resume(body)

    def _resume(self, body):
        upload = self.server.uploads[self.query["upload_id"]]
        upload[1] += body
        whole = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", self.headers["Content-Range"])
        if whole and len(upload[1]) >= int(whole[1]):
            return self._put(*upload)
        return self._answer(308, b"", Range=f"bytes=0-{len(upload[1]) - 1}")

    def do_DELETE(self):
        self._parse(self.path)
        with self.server.lock:
            if self.name not in self.server.objects:
                return self._error(404)
            if not self._matches(self.name):
                return self._error(412)
            del self.server.objects[self.name]
            self._answer(204)

    def _batch(self, body):
        """Deletions, the one thing of which gcsfs sends several in a request."""
        answers = []
        for number, part in enumerate(_parts(self.headers["Content-Type"], body)):
            self._parse(part.split()[1].decode())
            code = 204 if self.server.objects.pop(self.name, None) else 404
            answers.append(
                "--x\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{number + 1}>\r\n\r\nHTTP/1.1 {code} x\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--x--\r\n"
        self._answer(200, text.encode(), Content_Type="multipart/mixed; boundary=x")


def _parts(kind, body):
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + body).get_payload()
    return [part.get_payload(decode=True) for part in parts]
