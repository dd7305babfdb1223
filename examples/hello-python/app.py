"""A server of our own on $PORT: contract app."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def greet(name):
    return {"greeting": f"hello {name}"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(greet("from Python")).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
