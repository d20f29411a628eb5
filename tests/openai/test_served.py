"""What the client can ask for, through one machine's orchd and through a fleet's."""

import asyncio
import json

import httpx2
import openai
import pydantic
import pytest

from conftest import HUB_NAME
from processes import CLIENT_TOKEN, eventually

COUNT = [{"role": "user", "content": "Count!"}]
WORDS = " one two three four five six seven eight nine ten".split(" ")[1:]
# The same words each time, on engines that keep nothing of earlier ones, and no thoughts before them.
PLAIN = {
    "temperature": 0,
    "seed": 1,
    "extra_body": {"cache_prompt": False, "chat_template_kwargs": {"enable_thinking": False}},
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
# So small a model does not call tools by itself: it is left to end a call that it has begun.
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
TOOLS = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": CALL}],
    "tools": [WEATHER],
    "max_tokens": 9,
    "stop": ["</tool_call>"],
}
CALLING = PLAIN | {"extra_body": PLAIN["extra_body"] | {"logit_bias": [["</tool_call>", 100]]}}


class Digit(pydantic.BaseModel):
    """What an answer must look like."""

    model_config = pydantic.ConfigDict(extra="forbid")
    digit: int = pydantic.Field(ge=1, le=9)


def counted(number):
    """What the counting model says up to a number."""
    return "".join(f" {word}" for word in WORDS[:number])


def test_models(served):
    models = list(served.models.list())
    models = {model.id: model for model in models}
    assert models.keys() - {"absent"} == {"counting", HUB_NAME, "smollm2"}
    models.pop("absent", None)
    for model in models.values():
        found = served.models.retrieve(model.id)
        assert found.id == model.id and found.object == "model"
        assert found.meta["n_ctx"] == 2048
    assert served.models.retrieve(HUB_NAME).meta["alias_of"] == ["counting"]


def test_chat(served):
    answer = served.chat.completions.create(model=HUB_NAME, messages=COUNT, max_tokens=5, **PLAIN)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", counted(5))
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    # To the end, and up to a word.
    whole = served.chat.completions.create(model="counting", messages=COUNT, **PLAIN).choices[0]
    assert whole.message.content.endswith(" thirtynine forty") and whole.finish_reason == "stop"
    stopped = served.chat.completions.create(model="counting", messages=COUNT, stop=[" five"], **PLAIN).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (counted(4), "stop")


@pytest.mark.parametrize("usage", [True, False])
def test_chat_stream(served, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with served.chat.completions.create(
        model="counting", messages=COUNT, max_tokens=6, stream=True, **options, **PLAIN
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [word for word in said if word] == [f" {word}" for word in WORDS[:6]]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert [each.completion_tokens for each in told] == ([6] if usage else [])
    assert bool(chunks[-1].choices) != usage


def test_text(served):
    ask = {"model": "counting", "max_tokens": 3, **PLAIN}
    answer = served.completions.create(prompt="one two", **ask)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" three four five", "length")
    chunks = list(served.completions.create(prompt="one two", stream=True, **ask))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == " three four five"
    several = served.completions.create(prompt=["one two", "one five"], **ask)
    assert [choice.text for choice in several.choices] == [" three four five", " six seven eight"]


def test_several_answers_to_one_question(served):
    ask = {"model": "counting", "messages": COUNT, "n": 2, "max_tokens": 4, **PLAIN}
    answer = served.chat.completions.create(**ask)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, counted(4)), (1, counted(4))]
    said = {0: "", 1: ""}
    for chunk in served.chat.completions.create(stream=True, **ask):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == {0: counted(4), 1: counted(4)}


def test_logprobs(served):
    ask = {"model": "counting", "messages": COUNT, "logprobs": True, "top_logprobs": 2, "max_tokens": 3, **PLAIN}
    whole = served.chat.completions.create(**ask).choices[0].logprobs.content
    streamed = [
        token
        for chunk in served.chat.completions.create(stream=True, **ask)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    for found in (whole, streamed):
        assert [token.token for token in found] == [" one", " two", " three"]
        assert all(len(token.top_logprobs) == 2 and token.logprob > -0.1 for token in found)


def test_tools(served):
    whole = served.chat.completions.create(**TOOLS, **CALLING).choices[0]
    # The client puts the pieces of a stream together itself.
    with served.chat.completions.stream(**TOOLS, **CALLING) as stream:
        streamed = stream.get_final_completion().choices[0]
    for answer in (whole, streamed):
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert call.type == "function" and call.id
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})


def test_json(served):
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "Say a digit."}], "max_tokens": 40}
    schema = {"type": "json_schema", "json_schema": {"name": "digit", "schema": Digit.model_json_schema()}}
    for form in ({"type": "json_object", "schema": Digit.model_json_schema()}, schema):
        said = served.chat.completions.create(response_format=form, **ask, **PLAIN).choices[0].message.content
        Digit.model_validate_json(said)
    parsed = served.chat.completions.parse(response_format=Digit, **ask, **PLAIN).choices[0].message.parsed
    assert isinstance(parsed, Digit)


def test_responses(served):
    ask = {"model": "counting", "input": "Count!", "max_output_tokens": 4, "temperature": 0}
    assert served.responses.create(**ask).output_text == counted(4)
    events = list(served.responses.create(stream=True, **ask))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == counted(4)
    assert events[-1].response.output_text == counted(4)


def test_messages_in_anthropics_form(served):
    url = f"{served.base_url}messages"
    headers = {"x-api-key": CLIENT_TOKEN, "anthropic-version": "2023-06-01"}
    body = {"model": "counting", "max_tokens": 4, "messages": COUNT, "temperature": 0}
    answer = httpx2.post(url, headers=headers, json=body).json()
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert answer["content"] == [{"type": "text", "text": counted(4)}]
    assert answer["usage"]["output_tokens"] == 4

    streamed = httpx2.post(url, headers=headers, json=body | {"stream": True})
    assert streamed.headers["content-type"] == "text/event-stream"
    said, kinds = "", []
    for event in streamed.text.strip().split("\n\n"):
        kind, data = event.split("\n")
        kinds.append(kind.removeprefix("event: "))
        data = json.loads(data.removeprefix("data: "))
        assert data["type"] == kinds[-1]
        said += data.get("delta", {}).get("text", "")
    assert said == counted(4)
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")

    counted_tokens = httpx2.post(f"{url}/count_tokens", headers=headers, json={"model": "counting", "messages": COUNT})
    assert counted_tokens.json()["input_tokens"] > 0


def test_the_asynchronous_client(served):
    async def one(client):
        stream = await client.chat.completions.create(
            model="counting", messages=COUNT, max_tokens=9, stream=True, **PLAIN
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=served.base_url, api_key=CLIENT_TOKEN, max_retries=0) as client:
            # More than there are slots: some wait.
            return await asyncio.gather(*(one(client) for _ in range(10)))

    assert asyncio.run(all_at_once()) == [counted(9)] * 10


def test_both_engines_of_a_model_are_used(served):
    pools = set()

    def both():
        raw = served.chat.completions.with_raw_response.create(
            model="counting", messages=COUNT, max_tokens=1, **PLAIN
        )
        assert raw.parse().choices[0].message.content == counted(1)
        assert raw.headers["x-orchd-attempts"] == "1" and raw.request_id
        pools.add(raw.headers["x-orchd-pool"])
        return pools == {"a", "b"}

    # What another control plane did there a moment ago may count until the next reading.
    eventually(both, "both engines were asked")
