"""What the client makes of an answer is the same through orchd and from the engine itself, key by key."""

import pytest

from conftest import client
from test_served import CALLING, COUNT, PLAIN, TOOLS, Digit

SPEAK = [{"role": "user", "content": "Name a city."}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "digit", "schema": Digit.model_json_schema()}}

CHATS = {
    "plain": {"model": "counting", "messages": COUNT},
    "thoughts": {"model": "smollm2", "messages": SPEAK, "max_tokens": 6, "extra_body": {"cache_prompt": False}},
    "length": {"model": "counting", "messages": COUNT, "max_tokens": 3},
    "stop": {"model": "counting", "messages": COUNT, "stop": ["ve si"]},
    "usage": {"model": "counting", "messages": COUNT, "max_tokens": 2, "stream_options": {"include_usage": True}},
    "words": {"model": "smollm2", "messages": SPEAK, "max_tokens": 8},
    "logprobs": {"model": "smollm2", "messages": SPEAK, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
    "tools": TOOLS | CALLING,
    "no tools": TOOLS | {"tool_choice": "none", "max_tokens": 4},
    "schema": {"model": "smollm2", "messages": SPEAK, "max_tokens": 20, "response_format": SCHEMA},
}
TEXTS = {
    "plain": {"model": "counting", "prompt": "Count!"},
    "logprobs": {"model": "counting", "prompt": "one", "max_tokens": 3, "logprobs": 2},
    "several": {"model": "counting", "prompt": ["one", "two"], "max_tokens": 3},
    "words": {"model": "smollm2", "prompt": "Once upon", "max_tokens": 4},
}
# Another one each time.
PASSING = {"id", "created", "created_at", "completed_at", "item_id", "timings"}


def lasting(value):
    """Without what is another one each time; the kind of what was there stays."""
    match value:
        case dict():
            return {key: type(of).__name__ if key in PASSING else lasting(of) for key, of in value.items()}
        case list():
            return [lasting(of) for of in value]
        case _:
            return value


def asked(create, ask, stream):
    """All that a call gives, as the client read it."""
    given = dict(ask)
    if stream:
        # The engine begins a stream of several texts with `null`.
        return [chunk and lasting(chunk.to_dict()) for chunk in create(stream=True, **given)]
    given.pop("stream_options", None)
    return lasting(create(**given).to_dict())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", CHATS)
def test_chat(home, direct, case, stream):
    ask = PLAIN | CHATS[case]
    own = asked(direct[ask["model"]].chat.completions.create, ask, stream)
    assert asked(client(home).chat.completions.create, ask, stream) == own


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", TEXTS)
def test_text(home, direct, case, stream):
    ask = PLAIN | TEXTS[case]
    own = asked(direct[ask["model"]].completions.create, ask, stream)
    relayed = asked(client(home).completions.create, ask, stream)
    if stream and case == "several":
        # The engine writes them as they come.
        for chunks in (own, relayed):
            chunks.sort(key=lambda chunk: [choice["index"] for choice in chunk["choices"]] if chunk else [-1])
    assert relayed == own


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_responses(home, direct, stream):
    ask = {"model": "counting", "input": "Count!", "max_output_tokens": 3, "extra_body": {"cache_prompt": False}}
    own = asked(direct["counting"].responses.create, ask, stream)
    assert asked(client(home).responses.create, ask, stream) == own
