"""Taking messages from Redis: what is left there at each moment, and other lists than the first."""

import json

import pytest
import redis
from kombu import Connection, Consumer, Queue
from processes import token, wait_until

from poolkit.celery.redis_transport import install_redis_transport


@pytest.fixture
def taken(broker):
    """Return a function that takes one message, and what Redis has of it then."""
    install_redis_transport()
    queue = Queue(f"taken-{token()}")

    def take(*, no_ack):
        with (
            Connection(broker.url) as connection,
            redis.from_url(broker.url, decode_responses=True) as client,
        ):
            connection.SimpleQueue(queue.name).put({"n": 1})
            (sent,) = client.lrange(queue.name, 0, -1)
            bodies = []
            consumer = Consumer(connection, [queue], no_ack=no_ack)
            consumer.register_callback(lambda body, message: bodies.append((body, message)))
            with consumer:
                while not bodies:
                    connection.drain_events(timeout=60)
                ((body, message),) = bodies
                assert body == {"n": 1}
                recorded = client.hget("unacked", message.delivery_tag)
                if not no_ack:
                    message.ack()
                    assert client.hget("unacked", message.delivery_tag) is None
                return sent, recorded

    return take


def test_message_is_recorded_as_kombu_does_when_it_is_taken(taken):
    """The entry is the message itself with its exchange and routing key, so any kombu can put it back."""
    sent, recorded = taken(no_ack=False)
    properties = json.loads(sent)["properties"]
    exchange, key = (properties["delivery_info"][name] for name in ("exchange", "routing_key"))
    assert json.loads(recorded) == [json.loads(sent), exchange, key]


def test_message_that_needs_no_acknowledgement_is_not_recorded(taken):
    """It would be put back, and delivered again, for ever."""
    assert taken(no_ack=True)[1] is None


def test_messages_of_other_queues_and_priorities_are_taken(site):
    """A worker that waits at one list looks into all of them."""
    site.start("-c", "1", "-Q", f"{site.queue},{site.queue}-other")
    for name, options in (("low", {"priority": 9}), ("other", {"queue": f"{site.queue}-other"})):
        site.app.send_task("shop.take_order", [name], **options)
        site.wait_for_order(name)


def test_redis_that_refuses_the_commands_is_asked_as_kombu_does(own_broker_site):
    """An older server, or a user without EVAL: the worker says what that costs, and works."""
    site, broker = own_broker_site
    with redis.from_url(broker.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-eval")
    worker = site.start("-c", "1")
    site.send("taken")
    site.wait_for_order("taken")
    wait_until(lambda: worker.logged("because Redis refuses EVAL"), "the warning")
