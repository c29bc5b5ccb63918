"""No dead letter is given up: what does not fit goes without its value, the others are held."""

import contextlib
import os
from threading import Event, Thread

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource

from consumers import topics
from tests.test_clocks import value
from tests.test_trainer import Place, expected, ratings


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


def send(place, *records):
    """Each (value, key, headers) is in the ratings' topic, however large."""
    with contextlib.closing(
        KafkaProducer(bootstrap_servers=place.broker, max_request_size=16 << 20)
    ) as producer:
        for value, key, headers in records:
            producer.send(topics.name(place.prefix, "rating"), value, key, headers).get(10)


def limit(place, kind, size):
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=place.broker)) as admin:
        topic = topics.name(place.prefix, kind)
        wanted = {"max.message.bytes": str(size)}
        admin.alter_configs([ConfigResource("TOPIC", topic, configs=wanted)])


def told(letters):
    """Return key, value, whether its own header is left, and what it says is missing."""
    found = []
    for letter in sorted(letters, key=lambda each: int(dict(each.headers)["dlq.offset"])):
        headers = dict(letter.headers)
        assert headers["dlq.reason"] in (b"too_large", b"not_json")
        found.append((letter.key, letter.value, "own" in headers, headers.get("dlq.truncated")))
    return found


def test_a_letter_larger_than_any_request_goes_without_its_value_and_says_so(place, apache):
    if apache:
        limit(place, "rating", 16 << 20)
    send(
        place,
        (bytes(5 << 20), b"k", [("own", b"x")]),
        (b"{", b"k", [("own", bytes(5 << 20))]),
        (b"{", b"k", [("own", b"x")]),
    )
    place.send(ratings(20))
    trainer = place.learn_all()
    assert place.counts() == expected(ratings(20))
    assert told(place.dead_letters()) == [
        (b"k", None, True, b"value"),
        (None, None, False, b"value,key,headers"),
        (b"k", b"{", True, None),
    ]
    assert value(trainer, "dead_letters_failed_total") == 3  # refusals: one, then two


def test_a_letter_larger_than_its_topic_takes_goes_cut_and_the_others_whole(place, apache):
    if not apache:
        pytest.skip("limits of a topic: Apache Kafka only")
    limit(place, "dlq", 10_000)
    small = [b"{" + os.urandom(400).hex().encode() for _ in range(60)]
    send(
        place, (b"{" + os.urandom(20_000).hex().encode(), b"k", []), *[(v, b"k", []) for v in small]
    )
    place.learn_all()
    assert told(place.dead_letters()) == [
        (b"k", None, False, b"value"), *[(b"k", each, False, None) for each in small],
    ]  # fmt: skip


def test_a_topic_that_takes_no_letter_holds_the_trainer_until_it_does(place, apache):
    if not apache:
        pytest.skip("limits of a topic: Apache Kafka only")
    limit(place, "dlq", 100)
    send(place, (b"{", b"k", []))
    place.send(ratings(20))
    trainer, wait = place.trainer(), Event()
    trainer.start()
    thread = Thread(target=lambda: trainer.run_until(trainer.source.ends()))
    thread.start()
    try:
        for _ in range(200):
            if value(trainer, "dead_letters_failed_total") > 3:
                break
            wait.wait(0.1)
        assert thread.is_alive() and not place.dead_letters()
        limit(place, "dlq", 4 << 20)
        thread.join(60)
        assert not thread.is_alive()
    finally:
        trainer.stop.set()
        thread.join()
        trainer.close()
    assert len(place.dead_letters()) == 1
    assert place.counts() == expected(ratings(20))
