"""Two machines at one interceptor: neither has anything of the other's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor.scene import API, VALUE, Scene, answering, secret
from vm.egress.journal import Kind

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def neighbour(scene: Scene, tmp_path: Path) -> AsyncIterator[Scene]:
    """Another machine's gate before the same interceptor; what that says is heard by `scene`."""
    made = Scene(tmp_path)
    made.authority, made.ca, made.interceptors = scene.authority, scene.ca, scene.interceptors
    made.open()
    yield made
    made.gate.close()
    made.interceptors.forget(made.token)


async def test_another_machine_s_placeholder_means_nothing(scene: Scene, neighbour: Scene) -> None:
    """It travels as it is and is told of, while from its own machine the value arrives."""
    mine, theirs = secret(), secret(value="the-value-of-the-neighbour")
    await scene.tell(mine)
    await neighbour.tell(theirs)
    async with scene.serving() as server:
        await scene.ask(server.port, f"X-Key: {theirs.placeholder}", f"X-Mine: {mine.placeholder}")
        assert server.got[-1]["x-key"] == theirs.placeholder.encode()
        assert server.got[-1]["x-mine"] == VALUE.encode()
        assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail
        await neighbour.ask(server.port, f"X-Key: {theirs.placeholder}")
        assert server.got[-1]["x-key"] == b"the-value-of-the-neighbour"
    assert not scene.noted(Kind.ALERT)


async def test_a_machine_s_answers_say_nothing_of_another_s_secrets(scene: Scene, neighbour: Scene) -> None:
    """A value is taken out for its own machine only: otherwise one could try whether another has it."""
    theirs = secret(value="the-value-of-the-neighbour")
    await scene.tell(secret())
    await neighbour.tell(theirs)
    body = theirs.value.encode()
    async with scene.serving(answering(f"200 OK\r\nContent-Length: {len(body)}", body)) as server:
        assert (await scene.ask(server.port, host=API)).body == body
        assert (await neighbour.ask(server.port, host=API)).body == theirs.placeholder.encode()


async def test_an_authority_of_a_company_is_trusted_where_the_administrator_says_so(
    scene: Scene, tmp_path: Path
) -> None:
    """An upstream of a private authority gets nothing, and the guest reads so; named in the settings, it gets all."""
    token = secret()
    await scene.tell(token)
    async with scene.serving() as server:
        assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()
    stranger = Scene(tmp_path, trusting=False)
    await stranger.start()
    try:
        await stranger.tell(token)
        async with stranger.serving() as server:
            answer = await stranger.ask(server.port, f"X-Key: {token.placeholder}")
            assert (answer.status, server.got) == (502, [])
            assert VALUE.encode() not in answer.raw
    finally:
        await stranger.close()
