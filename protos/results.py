"""Reads the results stream: a training run can read the outcomes of its jobs directly from Redis.

Every job that was submitted with a run_id adds one entry {job, outcome} to the stream of its run when
it ends, whatever its outcome. The transaction that stores the outcome also writes the entry. Read the
stream with a consumer group created at id 0. Acknowledge an entry once its reward is stored: entries
that were not acknowledged are delivered again. Entries are kept for the server's `result_ttl_s`, and some for up to
twice as long. They have no explanations (`Context.explain`): ask the server for the job by its id to get one.
"""

from __future__ import annotations

from collections.abc import Mapping

from protos import codec
from protos import reward_pb2 as pb
from protos.error_codes import ErrorCode
from protos.types import ContractError, Outcome

JOB, OUTCOME = "job", "outcome"  # the fields of an entry


def owned_run(run_id: str, key_id: str) -> str:
    """The full name of a run that belongs to an API key, as it is in Redis. An empty id: the server has no keys.

    For an empty `run_id`, it is what all full names of the key's runs begin with.
    """
    return f"{key_id}:{run_id}" if key_id else run_id


def results_key(profile: str, run_id: str) -> str:
    """The name of a run's stream in Redis. `profile` is `Model.profile` of the served model.

    `run_id` is the full name (`owned_run`) if the server requires keys.
    """
    return f"motion-reward:{{{profile}}}:run:{run_id}"


def outcome_of(fields: Mapping[bytes, bytes]) -> Outcome:
    """The outcome in the fields of one entry, as redis-py returns them.

    Raises ContractError("bad_result") if the entry has no outcome: it was trimmed from the stream before it was
    acknowledged, or another program wrote it.
    """
    data = fields.get(OUTCOME.encode()) if fields else None
    if not data:
        raise ContractError(
            ErrorCode.BAD_RESULT, "an entry of the results stream holds no outcome: it has expired; acknowledge it"
        )
    return codec.outcome_from_message(pb.Outcome.FromString(data))  # type: ignore[no-untyped-call]
