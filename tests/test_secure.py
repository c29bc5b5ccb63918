"""The laws of a protected broker, and of several brokers of which one dies.

COUNTERFLOW_TEST_KAFKA_SECURE is a JSON object with `bootstrap` (a listener of SASL_SSL and
SCRAM-SHA-512), `ca` (a PEM file), `user` and `password` of a user that may do everything;
`stranger`, an object of `user` and `password` without any right; and, where certificates identify
clients, `mtls` (an SSL listener), `certificate` and `key` (PEM files).
COUNTERFLOW_TEST_KAFKA_NODES is a JSON object with `bootstrap` and `nodes`, the process of each
broker by its id; one of these is killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from consumers import clients, playground, topics
from consumers.kafka import KafkaSource, Outgoing, Sink, Unacknowledged
from consumers.settings import KafkaSettings
from stream.errors import CounterflowError

WAIT_S = 60.0
QUICK = {"bootstrap_timeout_ms": 1_000}  # a wrong setting is told at once, not after 10 s

GIVEN = json.loads(os.environ.get("COUNTERFLOW_TEST_KAFKA_SECURE", "{}"))
NODES = json.loads(os.environ.get("COUNTERFLOW_TEST_KAFKA_NODES", "{}"))
secure = pytest.mark.skipif(not GIVEN, reason="COUNTERFLOW_TEST_KAFKA_SECURE names no broker")
mutual = pytest.mark.skipif(
    "mtls" not in GIVEN, reason="COUNTERFLOW_TEST_KAFKA_SECURE names no `mtls` listener"
)
several = pytest.mark.skipif(not NODES, reason="COUNTERFLOW_TEST_KAFKA_NODES names no brokers")


def sasl(**other: Any) -> dict[str, Any]:
    """Return the clients' options of the user that may do everything, but for the `other`."""
    settings: dict[str, Any] = {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": GIVEN.get("ca", ""),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": GIVEN.get("user", ""),
        "sasl_plain_password": GIVEN.get("password", ""),
        "options": QUICK,
    }
    return clients.options(KafkaSettings(**settings | other))


def mtls(**other: Any) -> dict[str, Any]:
    """Return the clients' options of the certificate that may do everything."""
    settings: dict[str, Any] = {
        "security_protocol": "SSL",
        "ssl_cafile": GIVEN["ca"],
        "ssl_certfile": GIVEN["certificate"],
        "ssl_keyfile": GIVEN["key"],
        "options": QUICK,
    }
    return clients.options(KafkaSettings(**settings | other))


def stranger() -> dict[str, Any]:
    """Return the clients' options of a user without rights."""
    user = GIVEN["stranger"]
    return sasl(sasl_plain_username=user["user"], sasl_plain_password=user["password"])


def take(source: KafkaSource, count: int) -> int:
    """Poll until `count` records came or time is up; return how many came."""
    seen, until = 0, time.monotonic() + WAIT_S
    while seen < count and time.monotonic() < until:
        seen += sum(batch.count for batch in source.poll())
    return seen


def goes_through(bootstrap: str, prefix: str, client: dict[str, Any]) -> None:
    """Make and check topics, produce, poll and commit; fail where any of it does."""
    assert len(topics.create(bootstrap, prefix, partitions=2, client=client)) == 6
    assert topics.check(bootstrap, prefix, client=client) == []
    rating = topics.name(prefix, "rating")
    with Sink(bootstrap_servers=bootstrap, client=client) as sink:
        sink.produce([Outgoing(rating, b"%d" % at, b"k", partition=at % 2) for at in range(10)])
    with KafkaSource(
        bootstrap_servers=bootstrap, topics={rating: "rating"}, group_id=prefix, client=client
    ) as source:
        source.start()
        assert take(source, 10) == 10
        assert source.positions() == {(rating, 0): 5, (rating, 1): 5}
        source.commit(source.positions())
    tool = KafkaConsumer(bootstrap_servers=bootstrap, group_id=prefix, **client)
    try:
        assert [tool.committed(TopicPartition(rating, at)) for at in range(2)] == [5, 5]
    finally:
        tool.close()


@secure
def test_everything_goes_through_sasl_ssl(prefix: str) -> None:
    goes_through(GIVEN["bootstrap"], prefix, sasl())


@secure
@mutual
def test_everything_goes_through_a_clients_certificate(prefix: str) -> None:
    goes_through(GIVEN["mtls"], prefix, mtls())


WRONG = {
    "password": ({"sasl_plain_password": "no"}, "check user name, password"),
    "user": ({"sasl_plain_username": "nobody"}, "check user name, password"),
    "mechanism": ({"sasl_mechanism": "PLAIN"}, "does not offer this sasl_mechanism"),
    "plaintext": ({"security_protocol": "PLAINTEXT"}, "uses TLS"),
    "sasl without tls": ({"security_protocol": "SASL_PLAINTEXT"}, "uses TLS"),
    "tls without sasl": ({"security_protocol": "SSL"}, "check security_protocol"),
    "no ca": ({"ssl_cafile": ""}, "ssl_cafile"),
    "absent ca": ({"ssl_cafile": "/absent.pem"}, "readable PEM files"),
    "no pem": ({"ssl_cafile": __file__}, "readable PEM files"),
}


@secure
@pytest.mark.parametrize(("other", "remedy"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_told_with_its_remedy(other: dict[str, Any], remedy: str) -> None:
    with pytest.raises(CounterflowError) as raised:
        topics.check(GIVEN["bootstrap"], "any", client=sasl(**other))
    assert remedy in raised.value.remedy
    assert GIVEN["bootstrap"] in raised.value.message
    assert GIVEN["password"] not in raised.value.message


@secure
@mutual
def test_a_missing_or_foreign_client_certificate_is_told_with_its_remedy() -> None:
    with pytest.raises(CounterflowError) as raised:
        topics.check(GIVEN["mtls"], "any", client=mtls(ssl_certfile="", ssl_keyfile=""))
    assert "set ssl_certfile and ssl_keyfile" in raised.value.remedy
    with pytest.raises(CounterflowError) as raised:
        topics.check(GIVEN["mtls"], "any", client=mtls(ssl_certfile=GIVEN["ca"]))
    assert "not the key of ssl_certfile" in raised.value.remedy


@secure
@pytest.mark.skipif(
    "stranger" not in GIVEN, reason="COUNTERFLOW_TEST_KAFKA_SECURE names no `stranger`"
)
def test_what_a_user_may_not_do_is_told_with_the_grant_that_lacks(prefix: str) -> None:
    bootstrap = GIVEN["bootstrap"]
    topics.create(bootstrap, prefix, client=sasl())
    with pytest.raises(CounterflowError, match="TopicAuthorizationFailed") as raised:
        topics.create(bootstrap, f"{prefix}x", client=stranger())
    assert "kafka-acls" in raised.value.remedy
    assert {problem.problem for problem in topics.check(bootstrap, prefix, client=stranger())} == {
        "does not exist"  # what Kafka shows of a topic that one may not describe
    }
    rating = topics.name(prefix, "rating")
    with Sink(bootstrap_servers=bootstrap, client=stranger()) as sink:
        with pytest.raises(Unacknowledged) as refused:
            sink.produce([Outgoing(rating, b"v", b"k")])
    assert refused.value.acknowledged == ()
    assert "kafka-acls" in refused.value.remedy
    with KafkaSource(
        bootstrap_servers=bootstrap, topics={rating: "rating"}, client=stranger()
    ) as source:
        with pytest.raises(CounterflowError) as raised:
            source.start()
    assert "with ACLs, grant" in raised.value.remedy


def test_tls_to_a_listener_without_it_ends_and_says_so() -> None:
    with playground.broker() as plain:
        said = subprocess.run(
            [
                sys.executable, "-m", "consumers", "topics", "check",
                f"--set=kafka.bootstrap_servers={plain}", "--set=kafka.security_protocol=SSL",
                f"--set=kafka.options={json.dumps(QUICK)}",
            ],
            stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert said.returncode != 0
    assert "does this listener use TLS?" in said.stderr


@several
def test_a_source_and_a_sink_go_on_when_a_partitions_leader_is_killed(prefix: str) -> None:
    bootstrap = NODES["bootstrap"]
    topics.create(bootstrap, prefix, partitions=3, replication=3)
    until = time.monotonic() + WAIT_S
    while problems := topics.check(bootstrap, prefix):  # asks any broker: one may not know yet
        assert time.monotonic() < until, problems
    rating = topics.name(prefix, "rating")
    with topics.Admin(bootstrap) as admin:
        (told,) = admin.describe_topics([rating])
    leader = told["partitions"][0]["leader_id"]
    with (
        Sink(bootstrap_servers=bootstrap) as sink,
        KafkaSource(bootstrap_servers=bootstrap, topics={rating: "rating"}) as source,
    ):
        source.start()
        for half in range(2):
            values = [b"%d" % at for at in range(150 * half, 150 * half + 150)]
            sink.produce([Outgoing(rating, value, partition=0) for value in values], WAIT_S)
            assert take(source, 150) == 150
            assert source.positions() == {
                (rating, 0): 150 * (half + 1),
                (rating, 1): 0,
                (rating, 2): 0,
            }
            if half == 0:
                os.kill(NODES["nodes"][str(leader)], signal.SIGKILL)
    tool = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    try:
        tool.assign([TopicPartition(rating, 0)])
        assert [next(tool).value for _ in range(300)] == [b"%d" % at for at in range(300)]
    finally:
        tool.close()
