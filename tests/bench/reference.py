"""What the local model is compared with: transformers on the same weights, in bfloat16.

``.venv-torch/bin/python reference.py FOLDER THREADS NEW_TOKENS REPEATS`` reads the prompt's ids from its
standard input and prints one line of JSON: seconds to the first token, tokens a second after it.
"""

import json
import sys
import time

import torch
import transformers


@torch.inference_mode()
def generate(model: torch.nn.Module, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Greedy, one forward pass a token; the loop of ``generate`` without its checks, so faster than it."""
    began = time.monotonic()
    said = model(prompt, use_cache=True, logits_to_keep=1)
    token = said.logits[:, -1:].argmax(-1)
    token.item()
    first = time.monotonic()
    for _ in range(new_tokens - 1):
        said = model(token, past_key_values=said.past_key_values, use_cache=True)
        token = said.logits[:, -1:].argmax(-1)
        token.item()
    return first - began, (new_tokens - 1) / (time.monotonic() - first)


def main() -> None:
    """Load, warm up, measure."""
    folder, threads, new_tokens, repeats = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prompt = torch.tensor([json.load(sys.stdin)])
    generate(model, prompt, new_tokens)
    runs = [generate(model, prompt, new_tokens) for _ in range(repeats)]
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"first_token_s": [run[0] for run in runs], "tokens_per_s": [run[1] for run in runs],
                      "versions": versions}))  # fmt: skip


if __name__ == "__main__":
    main()
