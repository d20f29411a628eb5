"""What goes wrong is the client's own exception, of the right class, in the words of whoever refused."""

import json
import threading
import time

import httpx2
import openai
import pytest

from conftest import client
from processes import CLIENT_TOKEN, end, engine, orchd, wait_for_pools
from test_served import COUNT

ENDLESS = {"model": "ring", "messages": COUNT, "stream": True}
TOO_LONG = [{"role": "user", "content": "word " * 3000}]


def refused(kind, call, *arguments, **ask):
    """The exception of a call, which must be of this class and no other."""
    with pytest.raises(openai.APIError) as caught:
        call(*arguments, **ask)
    assert type(caught.value) is kind, repr(caught.value)
    return caught.value


def test_a_model_that_does_not_exist(served):
    error = refused(openai.NotFoundError, served.chat.completions.create, model="nope", messages=COUNT)
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert "counting" in error.message and error.request_id
    assert refused(openai.NotFoundError, served.models.retrieve, "a/b c").code == "model_not_found"
    streamed = refused(openai.NotFoundError, served.responses.create, model="nope", input="x", stream=True)
    assert streamed.code == "model_not_found"


def test_a_key_that_is_none(served):
    for key in ("sk-wrong", CLIENT_TOKEN[:-1]):
        wrong = served.with_options(api_key=key)
        for call, ask in (
            (wrong.models.list, {}),
            (wrong.chat.completions.create, {"model": "counting", "messages": COUNT}),
        ):
            assert refused(openai.AuthenticationError, call, **ask).code == "invalid_api_key"


def test_what_the_engine_refuses_is_told_in_its_words(served, direct):
    ask = {"model": "counting", "messages": TOO_LONG}
    calls = (
        (openai.BadRequestError, lambda it: it.post("/chat/completions", body={"model": "counting"}, cast_to=object)),
        (openai.BadRequestError, lambda it: it.chat.completions.create(**ask)),
        (openai.BadRequestError, lambda it: it.chat.completions.create(stream=True, **ask)),
        # It was not started with --embeddings.
        (openai.InternalServerError, lambda it: it.embeddings.create(model="counting", input="x")),
    )
    for kind, call in calls:
        own = refused(kind, call, direct["counting"])
        relayed = refused(kind, call, served)
        assert (relayed.status_code, relayed.body, relayed.message) == (own.status_code, own.body, own.message)


def test_what_orchd_refuses_itself(home):
    url = f"{home.url}/v1/chat/completions"
    headers = {"authorization": f"Bearer {CLIENT_TOKEN}"}
    answer = httpx2.post(url, headers=headers, content="{", timeout=10)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"
    error = refused(openai.BadRequestError, client(home).post, "/chat/completions", body={}, cast_to=object)
    assert error.code == "missing_model"
    # An alias of a model that no engine has.
    error = refused(openai.InternalServerError, client(home).chat.completions.create, model="absent", messages=COUNT)
    assert (error.status_code, error.code) == (503, "no_ready_pool")
    assert int(error.response.headers["retry-after"]) >= 1


@pytest.fixture(scope="module")
def ring():
    """An engine that never ends by itself, with three slots."""
    running = engine("ring", 3)
    yield running
    running.kill()


@pytest.fixture
def narrow(ring):
    """orchd before it, without a queue."""
    server = orchd("serve", "--engine", ring.url, "--admission-capacity", "0")
    wait_for_pools(server, 1)
    yield server
    end(server)


def begin(server, **more):
    """A stream that has begun."""
    stream = client(server).chat.completions.create(**ENDLESS, **more)
    next(stream)
    return stream


def test_a_full_queue_and_when_to_come_back(narrow):
    taken = [begin(narrow) for _ in range(3)]
    error = refused(openai.RateLimitError, client(narrow).chat.completions.create, **ENDLESS)
    assert (error.status_code, error.code, error.type) == (429, "queue_full", "rate_limit_error")
    assert 1 <= int(error.response.headers["retry-after"]) <= 60

    # The client's own retry comes when it was told to, and not before.
    seen, first = [], threading.Event()

    def note(answer):
        seen.append((time.monotonic(), answer.status_code, answer.headers.get("retry-after")))
        first.set()

    def leave():
        first.wait(20)
        for stream in taken:
            stream.close()

    leaving = threading.Thread(target=leave)
    leaving.start()
    with httpx2.Client(event_hooks={"response": [note]}, timeout=60) as http:
        patient = client(narrow, max_retries=2, http_client=http)
        patient.chat.completions.create(**ENDLESS | {"max_tokens": 1, "stream": False})
    leaving.join()
    assert [status for _, status, _ in seen] == [429, 200]
    (refused_at, _, told), (served_at, _, _) = seen
    assert served_at - refused_at >= int(told)


def test_a_stream_whose_engine_is_lost_is_none_that_ended(narrow, ring):
    chat = begin(narrow)
    responses = client(narrow).responses.create(model="ring", input="Count!", stream=True)
    next(responses)
    headers = {"x-api-key": CLIENT_TOKEN, "anthropic-version": "2023-06-01"}
    body = {"model": "ring", "max_tokens": 1_000_000, "messages": COUNT, "stream": True}
    with httpx2.stream("POST", f"{narrow.url}/v1/messages", headers=headers, json=body, timeout=60) as messages:
        lines = messages.iter_lines()
        next(lines)
        ring.kill()
        try:
            error = refused(openai.APIError, list, chat)
            assert (error.code, error.type) == ("worker_reset", "server_error")
            assert "incomplete" in error.message

            # OpenAI's own form of it is an event, with which the client goes on as with any other.
            *_, last = responses
            assert (last.type, last.code) == ("error", "worker_reset")
            assert "incomplete" in last.message

            kind, data = [line for line in lines if line][-2:]
            assert kind == "event: error"
            data = json.loads(data.removeprefix("data: "))
            assert (data["type"], data["error"]["type"]) == ("error", "api_error")
        finally:
            ring.start()


def test_an_answer_whose_engine_is_gone(narrow, ring):
    ring.kill()
    try:
        ask = ENDLESS | {"stream": False, "max_tokens": 1}
        error = refused(openai.InternalServerError, client(narrow).chat.completions.create, **ask)
        assert error.code in ("upstream_failed", "no_ready_pool")
    finally:
        ring.start()
