"""Run as a script: vLLM with our plugin, without HTTP. Reads FOLDER/job.json and writes FOLDER/answers.json.

The job: "model", "vectors" {name: file}, "requests" [{prompt, steering}], "options" of vLLM, "tokens", and "weights", files
that are loaded one after the other. The answers: "rounds", the token ids of all requests for the model as it was loaded and
after each file, and "preemptions".
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from steerlift.serving import private
from steerlift.serving.steering_field import XARG, cache_salt, canonical, seal
from steerlift.serving.vector_store import VectorStore, store_files

LAYERS = 3


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    own = private.create_folder(os.getpid(), None)
    os.environ[private.FOLDER_VARIABLE] = str(own)
    try:
        store_files(own, {name: Path(path) for name, path in job["vectors"].items()}, job["model"])
        answers = run(job, own)
    finally:
        private.remove_folder(own)
    (folder / "answers.json").write_text(json.dumps(answers))


def run(job: dict[str, Any], own: Path) -> dict[str, Any]:
    from vllm import LLM

    llm = LLM(
        job["model"],
        dtype="float32",
        max_model_len=512,
        logits_processors=["steerlift.serving.steering_rows:SteeringRows"],
        weight_transfer_config={"backend": "steerlift_file"},
        additional_config={"steerlift": "tests"},
        disable_log_stats=False,
        **job["options"],
    )
    rounds = [generate(llm, job, own)]
    for path in job["weights"]:
        shutil.copy(path, own / private.WEIGHTS / "new")
        llm.start_weight_update()
        llm.update_weights({"update_info": {"file": "new"}})
        llm.finish_weight_update()
        llm.reset_prefix_cache()
        rounds.append(generate(llm, job, own))
    preemptions = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    return {"rounds": rounds, "preemptions": preemptions[0]}


def generate(llm: Any, job: dict[str, Any], own: Path) -> list[list[int]]:
    from vllm import SamplingParams

    store, key = VectorStore(own), private.read_key(own)
    prompts, parameters = [], []
    for request in job["requests"]:
        form = canonical(request["steering"], store.digest_of, LAYERS)
        extra = {XARG: seal(form, key)} if form else None
        prompts.append({"prompt_token_ids": request["prompt"], **({"cache_salt": cache_salt(form, None)} if form else {})})
        parameters.append(SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True, extra_args=extra))
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
