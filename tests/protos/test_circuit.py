"""Tests that a client leaves a server alone that it cannot reach, and comes back with one call."""

from __future__ import annotations

import pytest

from protos.client import (
    AsyncRewardClient,
    RequestRefused,
    RewardClient,
    RewardClientError,
    ServerBusy,
    ServerFailed,
    ServerSilent,
    circuit,
)
from protos.client.circuit import FAILURES, PAUSE_S, Circuit
from protos.error_codes import ErrorCode


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        patch.setattr(circuit.time, "monotonic", lambda: self.now_s)


def unreachable() -> None:
    raise ServerBusy(ErrorCode.UNREACHABLE, "no connection")


def never() -> None:
    raise AssertionError("the circuit let a call pass")


def opened() -> Circuit:
    made = Circuit("grpc://lab:1")
    for _ in range(FAILURES):
        with pytest.raises(ServerBusy, match="no connection"):
            made.call(unreachable)
    return made


def test_an_open_circuit_calls_nobody_and_tells_when_it_will(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(monkeypatch), opened()
    with pytest.raises(ServerBusy, match=f"grpc://lab:1: not reachable in {FAILURES} calls in a row") as refused:
        made.call(never)
    assert refused.value.code == ErrorCode.UNREACHABLE
    assert refused.value.retry_after_s and PAUSE_S[0] / 2 <= refused.value.retry_after_s <= PAUSE_S[0]
    clock.now_s += PAUSE_S[0]
    assert made.call(lambda: 1) == made.call(lambda: 1) == 1


def test_one_call_tries_after_a_pause_and_the_pauses_grow_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(monkeypatch), opened()

    def tries() -> None:
        with pytest.raises(ServerBusy, match="in a row"):
            made.call(never)  # another thread, meanwhile
        unreachable()

    for _ in range(8):
        clock.now_s += PAUSE_S[1]
        with pytest.raises(ServerBusy, match="no connection"):
            made.call(tries)
    with pytest.raises(ServerBusy) as refused:
        made.call(never)
    assert refused.value.retry_after_s and PAUSE_S[1] / 2 <= refused.value.retry_after_s <= PAUSE_S[1]


@pytest.mark.parametrize(
    "error", [ServerBusy(ErrorCode.OVERLOADED, "full"), ServerSilent(ErrorCode.NO_ANSWER, "late"), KeyError("a bug")]
)
def test_only_a_server_that_is_not_there_opens_it(error: Exception) -> None:
    def fails() -> None:
        raise error

    made = Circuit("grpc://lab:1")
    for _ in range(2 * FAILURES):
        with pytest.raises(type(error)):
            made.call(fails)
    assert made.call(lambda: 1) == 1


def test_a_try_that_is_given_up_leaves_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(monkeypatch), opened()
    clock.now_s += PAUSE_S[1]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.call(interrupted)
    assert made.call(lambda: 1) == 1


def test_a_long_try_does_not_hold_up_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(monkeypatch), opened()
    clock.now_s += PAUSE_S[1]

    def long() -> None:
        clock.now_s += PAUSE_S[1]
        assert made.call(lambda: 1) == 1  # another thread, meanwhile

    made.call(long)


@pytest.mark.parametrize("kind", [RequestRefused, ServerFailed])
def test_an_error_is_an_answer_too(kind: type[RewardClientError], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(monkeypatch), opened()

    def refuses() -> None:
        raise kind("bad_request", "no clip")

    clock.now_s += PAUSE_S[1]
    with pytest.raises(kind):
        made.call(refuses)
    with pytest.raises(ServerBusy, match="no connection"):
        made.call(unreachable)  # the first failure in a row
    assert made.call(lambda: 1) == 1


async def test_both_clients_have_one() -> None:
    with RewardClient("http://127.0.0.1:1", attempts=1, timeout_s=5) as blocking:
        for expected in ["Connection refused|attempts failed"] * FAILURES + ["in a row"]:
            with pytest.raises(RewardClientError, match=expected):
                blocking.model()
    async with AsyncRewardClient("http://127.0.0.1:1", attempts=1, timeout_s=5) as client:
        for expected in ["Connection refused|attempts failed"] * FAILURES + ["in a row"]:
            with pytest.raises(RewardClientError, match=expected):
                await client.model()
