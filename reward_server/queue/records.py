"""Converts values to the bytes that the queue keeps in Redis, and back: the contract's messages, never pickles."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from protos import codec
from protos import reward_pb2 as pb
from protos.types import Context, Model, Outcome, RefreshRequest, RefreshResponse

M = TypeVar("M", bound=Message)


def pack_context(context: Context) -> bytes:
    return _packed(codec.context_to_message(context))


def pack_outcome(outcome: Outcome) -> bytes:
    return _packed(codec.outcome_to_message(outcome))


def pack_model(model: Model) -> bytes:
    return _packed(codec.model_to_message(model))


def pack_refresh(request: RefreshRequest) -> bytes:
    return _packed(codec.refresh_to_message(request))


def pack_refreshed(response: RefreshResponse) -> bytes:
    return _packed(codec.refreshed_to_message(response))


def unpack_refresh(data: bytes) -> RefreshRequest:
    return codec.refresh_from_message(_parsed(pb.RefreshRequest(), data))


def unpack_refreshed(data: bytes) -> RefreshResponse:
    return codec.refreshed_from_message(_parsed(pb.RefreshResponse(), data))


def unpack_context(data: bytes) -> Context:
    return codec.context_from_message(_parsed(pb.Context(), data))


def unpack_outcome(data: bytes) -> Outcome:
    return codec.outcome_from_message(_parsed(pb.Outcome(), data))


def unpack_model(data: bytes) -> Model:
    return codec.model_from_message(_parsed(pb.Model(), data))


def _packed(message: Message) -> bytes:
    return bytes(message.SerializeToString())  # type: ignore[no-untyped-call]


def _parsed(message: M, data: bytes) -> M:
    message.ParseFromString(data)  # type: ignore[no-untyped-call]
    return message
