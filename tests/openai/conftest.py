"""What the tests stand on: two engines that count, one that speaks, orchd over them as one machine and as a fleet."""

from types import SimpleNamespace

import openai
import pytest

from processes import CLIENT_TOKEN, LOGS, TEMPLATE, end, engine, orchd, wait_for_pools

# A name as they are written on model hubs, and one that needs escaping in a path.
HUB_NAME = "org/Zählwerk 7b:Q4?"


def client(server, **more):
    """The official client, unchanged. What it would try again on its own is seen at the first time."""
    given = {"base_url": server.url + "/v1", "api_key": CLIENT_TOKEN, "max_retries": 0, "timeout": 60}
    return openai.OpenAI(**given | more)


@pytest.fixture(scope="session")
def engines():
    """Two of one model, and one whose template knows tools."""
    started = SimpleNamespace(
        a=engine("counting", 2),
        b=engine("counting", 2),
        speaks=engine("smollm2", 2, "--chat-template-file", TEMPLATE),
    )
    yield started
    for running in vars(started).values():
        running.kill()


def named(engines):
    """The engines as arguments of orchd."""
    return [word for name, running in vars(engines).items() for word in ("--engine", f"{name}={running.url}")]


@pytest.fixture(scope="session")
def home(engines):
    """One machine."""
    aliases = ["--alias", f"{HUB_NAME}=counting", "--alias", "absent=nowhere", "--no-pool-wait", "100ms"]
    server = orchd("serve", *named(engines), *aliases)
    wait_for_pools(server, 3)
    yield server
    end(server)


@pytest.fixture(scope="session")
def cloud(engines):
    """A fleet of one node."""
    server = orchd("serve", "--cloud", "--state-dir", LOGS / "state", "--heartbeat-interval", "1s", "--alias", f"{HUB_NAME}=counting")
    agent = orchd("agent", "--node-id", "gpu-1", "--server", server.url, *named(engines), ready="/health")
    wait_for_pools(server, 3)
    yield server
    end(agent)
    end(server)


@pytest.fixture(scope="session", params=["home", "cloud"])
def served(request):
    """A client of either."""
    return client(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def direct(engines):
    """A client of the engines themselves, by the model's name."""
    return {"counting": client(engines.a), "smollm2": client(engines.speaks)}
