"""The results stream: where a training run reads its outcomes straight from Redis, each as its job ends.

Every job that was submitted with a run_id ends, whatever becomes of it, with one entry {job, outcome}
on the stream of its run, written in the transaction that settles it. Read it with a consumer group
created at id 0 and acknowledge an entry once its reward is stored: what was not acknowledged comes
again. Entries live as long as results can be fetched (the server's `result_ttl_s`).
"""

from __future__ import annotations

from collections.abc import Mapping

from protos import codec
from protos import reward_pb2 as pb
from protos.error_codes import ErrorCode
from protos.types import ContractError, Outcome

JOB, OUTCOME = "job", "outcome"  # the fields of an entry


def results_key(profile: str, run_id: str) -> str:
    """The stream's name in Redis; `profile` is that of the served Model."""
    return f"motion-reward:{{{profile}}}:run:{run_id}"


def outcome_of(fields: Mapping[bytes, bytes]) -> Outcome:
    """The outcome in one entry's fields, as redis-py gives them.

    Raises ContractError("bad_result") for an entry of another make, or one that was trimmed while it was pending.
    """
    data = fields.get(OUTCOME.encode()) if fields else None
    if not data:
        raise ContractError(
            ErrorCode.BAD_RESULT, "an entry of the results stream holds no outcome; it expired, acknowledge it"
        )
    return codec.outcome_from_message(pb.Outcome.FromString(data))  # type: ignore[no-untyped-call]
