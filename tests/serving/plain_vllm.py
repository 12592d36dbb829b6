"""Run as a script: vLLM as it is, without our plugin. Reads FOLDER/job.json and writes FOLDER/answers.json.

The job: "model", "prompts" as texts, and "tokens". The answers: the greedy token ids of each prompt.
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    from vllm import LLM, SamplingParams

    job = json.loads((folder / "job.json").read_text())
    llm = LLM(job["model"], dtype="float32", max_model_len=512, enforce_eager=True)
    greedy = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True)
    outputs = llm.generate(job["prompts"], greedy, use_tqdm=False)
    (folder / "answers.json").write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
