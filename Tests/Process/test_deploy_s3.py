# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""A local cluster whose objects are in an S3 store that checks signatures."""

import json
import os
import subprocess
import sys

import boto3
import pytest

from cluster import Cluster
from harness import PATIENCE, ROOT, sha256


@pytest.fixture
def store():
    """endpoint, access_key_id, secret_access_key and bucket of moto, or of the store that MEMQ_TEST_S3 describes."""
    if given := os.environ.get("MEMQ_TEST_S3"):
        yield json.loads(given)
        return
    process = subprocess.Popen(
        [sys.executable, ROOT / "Tests/MemQObjectStoreTests/moto_store.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(PATIENCE)


def test_records_and_files_go_through_the_bucket(folder, store):
    credentials = folder / "credentials"
    credentials.write_text(
        "[default]\n"
        f"aws_access_key_id = {store['access_key_id']}\n"
        f"aws_secret_access_key = {store['secret_access_key']}\n"
    )
    s3 = ("--s3", store["endpoint"], "--s3-bucket", store["bucket"], "--s3-prefix", "one/two")
    with Cluster(folder, *s3, "--s3-credentials", str(credentials)) as cluster:
        cluster.cli("topic", "create", "events", "--partitions", "3", "--replication-factor", "3",
                    "--set", "local.retention.bytes=0")
        cluster.cli("produce", "events", stdin=b"".join(b"%d\n" % n for n in range(20_000)))
        cluster.cli("upload", "flush", "events")
        partitions = cluster.json("cluster", "partitions", "events")
        assert [p["uploaded_offset"] for p in partitions] == [p["high_watermark"] for p in partitions]
        assert sum(p["uploaded_offset"] for p in partitions) == 20_000
        assert sorted(int(v) for v in cluster.values("events")) == list(range(20_000))

        cluster.cli("topic", "create", "media", "--replication-factor", "3", "--scan", "gate")
        small, large = os.urandom(300_000), os.urandom(1 << 20) * 18
        for name, data in (("small", small), ("large", large)):
            (folder / name).write_bytes(data)
            cluster.cli("file", "put", "media", folder / name)
            assert sha256(cluster.cli("file", "get", "media", name, "-o", "-").stdout) == sha256(data)

        # Down and up again, with no options: the folder remembers the store.
        cluster.down()
        done = cluster.script("up", "--timeout", "60")
        assert done.returncode == 0 and f"s3://{store['bucket']}/one/two" in done.stdout, done.stderr
        assert sorted(int(v) for v in cluster.values("events")) == list(range(20_000))
        other = cluster.script("up", *s3[:4], "--s3-prefix", "three")
        assert other.returncode == 1 and "another store needs another data folder" in other.stderr

    keys = boto3.client(
        "s3", endpoint_url=store["endpoint"], region_name="us-east-1",
        aws_access_key_id=store["access_key_id"], aws_secret_access_key=store["secret_access_key"],
    ).list_objects_v2(Bucket=store["bucket"])["Contents"]
    assert keys and all(entry["Key"].startswith("one/two/") for entry in keys)
