# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""An S3 store for tests: moto with signatures checked, behind a door that can fail.

Prints one JSON line (endpoint, access_key_id, secret_access_key, bucket) and serves until its standard input ends. A line
"N STATUS" there makes the next N requests fail: with that status, or, for status 0, by closing the connection after the
request was carried out, so that its answer is lost; "ok" is printed once that is so.
"""

import io
import json
import os
import socket
import sys
import threading

os.environ.setdefault("INITIAL_NO_AUTH_ACTION_COUNT", "4")

import boto3  # noqa: E402
from botocore.config import Config  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please &amp; slowly</Message></Error>"


class Door:
    """Passes requests on; fails the next ones when told to."""

    def __init__(self, application):
        self.application = application
        self.lock = threading.Lock()
        self.left = 0
        self.status = 503

    def fail(self, count: int, status: int) -> None:
        with self.lock:
            self.left, self.status = count, status

    def __call__(self, environ, start_response):
        with self.lock:
            fails = self.left > 0
            self.left -= 1 if fails else 0
        if not fails:
            return self.application(environ, start_response)
        if self.status:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(
                f"{self.status} Slow Down",
                [("content-type", "application/xml"), ("content-length", str(len(SLOW_DOWN)))],
            )
            return [SLOW_DOWN]
        b"".join(self.application(environ, lambda *_: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError("the answer is lost on its way")


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type, message, *args):
        pass


def main() -> None:
    door = Door(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=Quiet)
    endpoint = f"http://127.0.0.1:{server.port}"
    sys.stderr = io.StringIO()
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def client(service, key="first", secret="first"):
        return boto3.client(
            service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=key,
            aws_secret_access_key=secret, config=Config(retries={"max_attempts": 1}),
        )

    client("s3").create_bucket(Bucket="memq-tests")
    iam = client("iam")
    iam.create_user(UserName="memq")
    made = iam.create_access_key(UserName="memq")["AccessKey"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="memq", PolicyName="all", PolicyDocument=json.dumps(policy))
    print(
        json.dumps(
            {
                "endpoint": endpoint,
                "access_key_id": made["AccessKeyId"],
                "secret_access_key": made["SecretAccessKey"],
                "bucket": "memq-tests",
            }
        ),
        flush=True,
    )
    for line in sys.stdin:
        door.fail(*map(int, line.split()))
        print("ok", flush=True)


if __name__ == "__main__":
    main()
