"""Asks llama.cpp what it makes of a GGUF file: a request in JSON on standard input, the answer in JSON on the last line.

texts: to encode. pieces: lists of ids to decode. prompts: lists of ids; for each the logits after every token
and, with `count`, the tokens that follow greedily. vocab_only: leave the weights alone.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np

WARNING, ERROR = 3, 4
request = json.load(sys.stdin)
said: list[str] = []


@llama_cpp.llama_log_callback
def _listen(level: int, line: bytes, _: object) -> None:
    if level in (WARNING, ERROR):
        said.append(line.decode(errors="replace").strip())


llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
settings = {"vocab_only": True} if request.get("vocab_only") else {
    "n_ctx": request.get("length", 256), "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "flash_attn": False,
    "type_k": 0, "type_v": 0,  # keys and values in fp32, not the fp16 of llama.cpp's default
}  # fmt: skip
# a quiet Llama would take the log away from us
model = llama_cpp.Llama(request["model"], verbose=True, **settings)


def _follow(prompt: list[int], count: int) -> list[int]:
    found: list[int] = []
    model.reset()
    model.eval(prompt)
    while len(found) < count:
        found.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(found[-1:])
    return found


def _logits(prompt: list[int]) -> list[list[float]]:
    model.reset()
    model.eval(prompt)
    return model.scores[: len(prompt)].tolist()


prompts = request.get("prompts", [])
answer = {
    "tokens": [model.tokenize(text.encode(), add_bos=request.get("special", False), special=False) for text in request.get("texts", [])],
    "texts": [model.detokenize(ids).decode(errors="replace") for ids in request.get("pieces", [])],
    "logits": [_logits(prompt) for prompt in prompts] if request.get("logits", True) else [],
    "greedy": [_follow(prompt, request["count"]) for prompt in prompts] if "count" in request else [],
    "eog": [i for i in range(model.n_vocab()) if request.get("ends") and llama_cpp.llama_vocab_is_eog(model._model.vocab, i)],
    "said": said,
}
print()
print(json.dumps(answer))
