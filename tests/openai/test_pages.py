"""A chat page in a browser may ask orchd whatever it may ask the engine."""

import httpx2
import pytest

from processes import CLIENT_TOKEN

PAGE = "http://localhost:3000"
ALLOWED = "access-control-allow-origin"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_a_page_may_send_its_token(home, engines, path):
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for server in (engines.a, home):
        answer = httpx2.options(server.url + path, headers=asked)
        assert (answer.status_code, answer.headers[ALLOWED]) == (200, PAGE)
        assert "POST" in answer.headers["access-control-allow-methods"] or path == "/v1/models"
        assert answer.headers["access-control-allow-headers"] in ("*", asked["access-control-request-headers"])


@pytest.mark.parametrize("body", ["{", '{"model":"counting","prompt":"x","max_tokens":1}'])
@pytest.mark.parametrize("key", [CLIENT_TOKEN, "wrong"])
def test_a_page_may_read_every_answer(home, key, body):
    headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
    answer = httpx2.post(f"{home.url}/v1/completions", headers=headers, content=body)
    assert answer.headers[ALLOWED] == PAGE
