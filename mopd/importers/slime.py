"""slime's ``--save-debug-rollout-data`` files (also miles): a ``.pt`` file, which is a pickle.

A pickle can run code, so it is loaded by ``torch.load(weights_only=True)``, which builds plain containers and
tensors and refuses everything else; a file that needs more is refused with that reason and never loaded
otherwise.

The file holds ``rollout_id`` (the step, a number; newer releases add ``metadata``) and ``samples``, each with
``group_index``, ``prompt`` (text or messages), ``tokens`` (prompt and response), ``response``,
``response_length``, ``reward`` (a number, or a mapping of which ``reward_key`` names the entry),
``loss_mask`` and ``status``. Samples that were aborted or never finished drop out. A loss mask with zeros
means that the response holds words of a tool. Evaluations of a step are written to a file of their own, whose name has
``eval_`` before the number while ``rollout_id`` and the group numbers start like those of training: they are kept apart
as groups of their own. A sample that ``failed`` is kept; whether it was finished is not known.

Schema: THUDM/slime, ``Sample.to_dict`` of ``slime/utils/types.py``; of the code that saves the file only excerpts were
read, not a release's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mopd.importers.base import FileContext, ImportFailure, ImportOptions, Item, Record, Row, RowError
from mopd.importers.prompts import as_prompt
from mopd.importers.reading import first_line, megabytes
from mopd.importers.values import as_ids, as_reward, as_text, kind_of

__all__ = ["parse_slime", "read_slime"]

FINISHED = {"completed": True, "truncated": False}
UNFINISHED = {"aborted", "pending"}
EVALUATION = "eval"
EVALUATION_NAME = re.compile(r"(?:\A|[^a-z])eval_\d+\Z")
REFUSED = "not a file that torch.load(weights_only=True) accepts; it is not loaded in any other way"


def read_slime(path: Path, options: ImportOptions) -> Iterator[Item]:
    """Samples of a debug file, each with its file's ``rollout_id`` under ``_rollout_id``."""
    import torch  # only a .pt file needs it

    try:
        size = path.stat().st_size
        if size > options.max_document_bytes:
            limit = megabytes(options.max_document_bytes)
            yield Item(line=None, error=RowError("file too long", f"{megabytes(size)}, the limit is {limit}"))
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign bytes may raise anything
        yield Item(line=None, error=RowError(REFUSED, first_line(error)))
        return
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        yield Item(
            line=None,
            error=RowError("not a slime debug file", f"no list under 'samples', {kind_of(content)}"),
        )
        return
    for number, sample in enumerate(samples, start=1):
        if isinstance(sample, dict):
            yield Item(line=number, record={**sample, "_rollout_id": content.get("rollout_id")})
        else:
            yield Item(line=number, error=RowError("a sample is not a mapping", kind_of(sample)))


def parse_slime(record: Record, context: FileContext) -> Row:
    status = record.get("status")
    if isinstance(status, str) and status in UNFINISHED:
        raise RowError(f"sample was {status}: generation did not finish")
    mask = record.get("loss_mask")
    if isinstance(mask, list) and not all(mask):
        raise RowError("the response holds tokens that the policy did not sample", "zeros in 'loss_mask'")
    prompt, notes = as_prompt(record.get("prompt"), "prompt", context.options.prompt_as)
    reward, reward_notes = as_reward(chosen(record.get("reward"), context.options.reward_key), "reward")
    step = record.get("_rollout_id")
    return Row(
        prompt=prompt,
        response=as_text(record.get("response"), "response"),
        reward=reward,
        response_ids=response_ids(record),
        finished=FINISHED.get(status) if isinstance(status, str) else None,
        step=step if isinstance(step, int) and not isinstance(step, bool) and abs(step) < 2**63 else context.step,
        group=group_of(record, context),
        notes=notes + reward_notes,
    )


def group_of(record: Record, context: FileContext) -> str | None:
    """The group's number, with a mark if the file is of an evaluation."""
    number = record.get("group_index")
    names = [EVALUATION] if EVALUATION_NAME.search(context.path.stem) else []
    return " ".join([*names, *([] if number is None else [f"{number}"])]) or None


def chosen(reward: object, reward_key: str | None) -> object:
    if not isinstance(reward, Mapping):
        return reward
    if reward_key not in reward:
        names = ", ".join(map(str, reward)) or "none"
        raise ImportFailure(f"rewards are mappings with the entries {names}; say which with reward_key= (--reward-key)")
    return reward[reward_key]


def response_ids(record: Record) -> tuple[int, ...] | None:
    """The last ``response_length`` tokens."""
    tokens, length = as_ids(record.get("tokens"), "tokens"), record.get("response_length")
    if tokens is None or not isinstance(length, int) or isinstance(length, bool) or length < 1:
        return None
    if length > len(tokens):
        raise RowError("field 'response_length' exceeds the number of tokens", f"{length} of {len(tokens)}")
    return tokens[-length:]
