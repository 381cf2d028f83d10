# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Bad input gets a clear typed error and changes nothing."""

import os
import shutil
import socket
import subprocess

import pytest

from harness import MEMQ, Server, free_port, wait_until


def refused(done, *words: str, status: int = 1) -> str:
    text = done.stderr.decode()
    assert done.returncode == status, (done.returncode, text)
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is not in: {text}"
    assert "fatal error" not in text.lower()
    return text


def test_an_unknown_topic_is_named(shared_server):
    for line in (
        ("produce", "nowhere"),
        ("consume", "nowhere", "--until-end"),
        ("file", "list", "nowhere"),
        ("topic", "describe", "nowhere"),
        ("upload", "flush", "nowhere"),
    ):
        refused(shared_server.cli(*line, stdin=b"x\n", check=False), "nowhere", "TOPIC_NOT_FOUND")


def test_topics_are_checked_before_they_are_made(shared_server):
    create = ("topic", "create")
    refused(shared_server.cli(*create, "a b", check=False), "TOPIC_NAME_INVALID")
    refused(
        shared_server.cli(*create, "t", "--replication-factor", "3", check=False),
        "REPLICATION_FACTOR_INVALID", "limit 1", "actual 3",
    )
    refused(shared_server.cli(*create, "t", "--partitions", "100001", check=False), "limit 10000")
    refused(shared_server.cli(*create, "t", "--set", "no.such=1", check=False), "no.such")
    refused(shared_server.cli(*create, "t", "--set", "retention.ms=abc", check=False), "abc")
    assert "t" not in [t["name"] for t in shared_server.json("topic", "list")]
    shared_server.cli(*create, "twice")
    refused(shared_server.cli(*create, "twice", check=False), "TOPIC_EXISTS")


def test_a_record_over_the_limit_names_limit_and_actual(shared_server):
    shared_server.cli("topic", "create", "small", "--set", "max.message.bytes=10000")
    done = shared_server.cli("produce", "small", stdin=b"x" * 20_000 + b"\n", check=False)
    refused(done, "RECORD_BATCH_TOO_LARGE", "limit 10000")
    shared_server.cli("produce", "small", stdin=b"fits\n")
    assert shared_server.values("small") == [b"fits"]


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 4096,
        os.urandom(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(2048),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 9,
    ],
    ids=["http1", "zeros", "random", "preface-and-random", "preface-and-huge-frame"],
)
def test_garbage_on_the_port_is_closed_and_the_server_goes_on(shared_server, bytes_sent):
    with socket.create_connection(("127.0.0.1", shared_server.port)) as connection:
        connection.settimeout(20)
        connection.sendall(bytes_sent)
        answer = b""
        try:
            while chunk := connection.recv(4096):
                answer += chunk
        except ConnectionResetError:
            pass
    if bytes_sent.startswith(b"GET"):
        assert answer.startswith(b"HTTP/1.1 400") and b"gRPC" in answer
    shared_server.cli("cluster", "status")


def test_a_second_process_on_the_same_folder_is_refused(server):
    port = free_port()
    second = subprocess.run(
        [MEMQ, "serve", "--data", server.data, "--listen", f"127.0.0.1:{port}"],
        capture_output=True,
        timeout=60,
    )
    refused(second, str(server.data), "DATA_FOLDER_IN_USE")
    server.cli("cluster", "status")


def test_a_taken_port_is_named(server, folder):
    second = subprocess.run(
        [MEMQ, "serve", "--data", folder / "other", "--listen", server.address],
        capture_output=True,
        timeout=60,
    )
    refused(second, server.address, "ADDRESS_IN_USE")


def test_the_data_folder_of_another_cluster_is_refused(folder):
    with Server(folder / "one") as one:
        one.cli("topic", "create", "t")
        one.cli("produce", "t", stdin=b"kept\n")
        assert one.stop() == 0
    with Server(folder / "two") as two:
        assert two.stop() == 0
    shutil.rmtree(folder / "two/volume-0")
    shutil.copytree(folder / "one/volume-0", folder / "two/volume-0")
    mixed = Server(folder / "two").start(ready=False)
    assert mixed.process.wait(60) == 1
    assert "WRONG_CLUSTER" in mixed.log.read_text()
    with Server(folder / "one") as one:
        assert one.values("t") == [b"kept"]


def test_bad_configuration_keys_and_values_are_named(folder):
    config = folder / "memq.yaml"
    for text, words in (
        ("no:\n  such:\n    key: 1\n", ["no.such.key"]),
        ("{{{ not yaml", ["memq.yaml"]),
    ):
        config.write_text(text)
        done = subprocess.run(
            [MEMQ, "serve", "--data", folder / "d", "--config", config, "--listen", f"127.0.0.1:{free_port()}"],
            capture_output=True,
            timeout=60,
        )
        refused(done, *words, status=2)
    for flags in (["--no-such-flag"], ["--listen", "nonsense"]):
        done = subprocess.run(
            [MEMQ, "serve", "--data", folder / "d", *flags], capture_output=True, timeout=60
        )
        refused(done, flags[-1], status=2)
    assert not (folder / "d").exists()


def test_usage_errors_exit_2_and_no_server_exits_1(folder):
    done = subprocess.run([MEMQ, "topic", "frobnicate"], capture_output=True, timeout=60)
    assert done.returncode == 2
    nobody = f"127.0.0.1:{free_port()}"
    done = subprocess.run(
        [MEMQ, "topic", "list", "--server", nobody], capture_output=True, timeout=60
    )
    text = refused(done, nobody, "Connection refused", "memq serve", "MEMQ_SERVER", "retried")
    assert "errno" not in text and text.count(nobody) == 1


def test_an_address_that_is_none_is_said_once(folder):
    for environment, flags, name in (
        ({}, ["--server", "foo"], "--server"),
        ({"MEMQ_SERVER": "foo"}, [], "MEMQ_SERVER"),
    ):
        done = subprocess.run(
            [MEMQ, "topic", "list", *flags],
            capture_output=True,
            timeout=60,
            env={**os.environ, **environment},
        )
        text = refused(done, name, "host:port", status=2)
        assert text.count("not an address") == 1


def test_a_server_that_cannot_start_says_why_in_one_line(server, folder):
    host, port = server.address.split(":")
    folders = folder / "not a folder"
    folders.write_bytes(b"")
    free = free_port()
    for flags, word in (
        (["--data", folder / "a", "--listen", server.address], "ADDRESS_IN_USE"),
        (
            ["--data", folder / "b", "--listen", f"{host}:{free}", "--admin-listen", server.admin],
            "ADDRESS_IN_USE",
        ),
        (["--data", folders, "--listen", f"{host}:{free}"], str(folders)),
        (["--data", server.data, "--listen", f"{host}:{free}"], "DATA_FOLDER_IN_USE"),
    ):
        # An unknown MEMQ_ variable is a warning of its own.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMQ_")}
        done = subprocess.run(
            [MEMQ, "serve", *flags], capture_output=True, timeout=60, env=environment
        )
        text = refused(done, word)
        assert len(text.splitlines()) == 1, text
