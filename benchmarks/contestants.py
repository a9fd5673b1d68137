"""Those who generate in `generate.py`, each in a process of its own that answers requests in JSON, a line each.

    python benchmarks/contestants.py triform|transformers|llama.cpp|ctranslate2 PATH PRECISION

A request is {"rows": R, "new": N}: prompts of 128 random tokens in R rows, N tokens more, greedily; the answer {"first": seconds to
the first token, "rest": seconds for the others}.
Triform also answers {"read": bytes} with the seconds to read so much memory, and {"score": ids} with nats a token.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = 128
THREADS = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))


def prompts(rows: int, vocabulary: int) -> list[list[int]]:
    """The same for everybody."""
    draw = random.Random(0)
    return [[draw.randrange(10, vocabulary) for _ in range(PROMPT)] for _ in range(rows)]


class Triform:
    """Ours, as `generate_ids` has it."""

    def __init__(self, path: str, precision: str) -> None:
        import torch

        from triform.generate import load_prepared
        from triform.kernels import Arena, PackedEmbedding, PackedLinear

        torch.set_num_threads(THREADS)
        self.model, _ = load_prepared(path, "auto" if path.endswith(".gguf") else precision)  # type: ignore[arg-type]
        packed = [m.data for m in self.model.modules() if isinstance(m, PackedLinear | PackedEmbedding)]
        self.bytes = sum({data.data_ptr(): data.numel() for data in packed}.values())
        self.vocabulary = self.model.config.decoder.input.vocab_size
        self.room = Arena(1 << 28).take(1 << 28).fill_(1).view(torch.float32)  # as the weights are

    def run(self, rows: int, new: int, heard: Callable[[], None]) -> None:
        """Generate."""
        import torch

        from triform.generate import Sampling, generate_ids

        def watch(row: int, token: int, last: bool) -> bool:
            heard()
            return False

        ids = torch.tensor(prompts(rows, self.vocabulary))
        generate_ids(self.model, ids, None, Sampling(max_new_tokens=new, min_new_tokens=new), watch=watch)

    def read(self) -> float:
        """Bytes of memory read a second, and nothing else done."""
        from triform.kernels import library

        native = library()
        assert native is not None
        start = time.perf_counter()
        native.read(self.room.data_ptr(), self.room.numel(), THREADS)
        return self.room.nbytes / (time.perf_counter() - start)

    def score(self, ids: list[int], window: int = 512) -> float:
        """Mean nats a token of a text, in windows that are each begun anew."""
        import torch

        from triform.generate.slots import Slots
        from triform.generate.stepper import Stepper

        stepper = Stepper.of(self.model)
        assert stepper is not None
        total, count = 0.0, 0
        with torch.inference_mode():
            like = torch.zeros(1, dtype=next(self.model.parameters()).dtype)
            cache = Slots(self.model.config, 1, window, 1, like)
            for first in range(0, len(ids) - window + 1, window):
                part = torch.tensor(ids[first : first + window])
                scores = stepper.step(part, torch.zeros(window, dtype=torch.long), cache)
                total += float(torch.nn.functional.cross_entropy(scores[:-1], part[1:], reduction="sum"))
                count += window - 1
        return total / count


class Transformers:
    """Hugging Face's `generate`."""

    def __init__(self, path: str, precision: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(THREADS)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.model.generation_config = transformers.GenerationConfig(pad_token_id=0)
        self.vocabulary = self.model.config.vocab_size

    def run(self, rows: int, new: int, heard: Callable[[], None]) -> None:
        """Generate."""
        import torch

        class Listener:
            def put(self, tokens: Any) -> None:
                if tokens.numel() == rows:  # the prompts come this way too
                    heard()

            def end(self) -> None:
                pass

        ids = torch.tensor(prompts(rows, self.vocabulary))
        how: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "streamer": Listener()}
        with torch.inference_mode():
            self.model.generate(ids, attention_mask=torch.ones_like(ids), **how)


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level interface: all rows in one batch, flash attention, fp16 keys and values."""

    def __init__(self, path: str, precision: str) -> None:
        import llama_cpp as lc

        self.lc = lc
        self._quiet = lc.llama_log_callback(lambda level, text, data: None)
        lc.llama_log_set(self._quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        settings = lc.llama_model_default_params()
        settings.use_mmap = False
        self.model = lc.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.contexts: dict[int, Any] = {}

    def _context(self, rows: int) -> Any:
        if rows not in self.contexts:
            settings = self.lc.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_seq_max = max(512, 256 * rows), max(2048, PROMPT * rows), rows
            settings.n_threads = settings.n_threads_batch = THREADS
            if hasattr(settings, "flash_attn_type"):
                settings.flash_attn_type = 1
            self.contexts[rows] = self.lc.llama_init_from_model(self.model, settings)
        return self.contexts[rows]

    def run(self, rows: int, new: int, heard: Callable[[], None]) -> None:
        """Generate."""
        import numpy as np

        lc, context = self.lc, self._context(rows)
        lc.llama_memory_clear(lc.llama_get_memory(context), False)
        batch = lc.llama_batch_init(PROMPT * rows, 0, 1)
        last, place = [], 0
        for row, ids in enumerate(prompts(rows, self.vocabulary)):
            for at, token in enumerate(ids):
                self._put(batch, place, token, (row, at), at == PROMPT - 1)
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        for step in range(new):
            if lc.llama_decode(context, batch) != 0:
                raise ValueError("llama.cpp could not decode the batch")
            logits = [np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), shape=(self.vocabulary,)) for i in last]
            for row, scores in enumerate(logits):
                self._put(batch, row, int(scores.argmax()), (row, PROMPT + step), True)
            heard()
            batch.n_tokens, last = rows, list(range(rows))
        lc.llama_batch_free(batch)

    @staticmethod
    def _put(batch: Any, place: int, token: int, where: tuple[int, int], wanted: bool) -> None:
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, where[1], 1
        batch.seq_id[place][0], batch.logits[place] = where[0], wanted


class CTranslate2:
    """CTranslate2, converted in this process; tokens are known to it by name only, for which any names do."""

    def __init__(self, path: str, precision: str) -> None:
        import ctranslate2
        import torch
        import transformers
        from ctranslate2.converters import transformers as converters

        folder = Path(path) / "ctranslate2"
        self.vocabulary = transformers.AutoConfig.from_pretrained(path).vocab_size
        if not (folder / "model.bin").exists():
            model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            for settings in (model.config, model.generation_config):
                settings.eos_token_id = settings.bos_token_id = 1
            with torch.no_grad():
                spec = converters._MODEL_LOADERS[type(model.config).__name__](model, _Names(self.vocabulary))
            spec.validate()
            spec.optimize(quantization=None)
            folder.mkdir()
            spec.save(str(folder))
        kind = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
        self.generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=kind, intra_threads=THREADS, inter_threads=1)

    def run(self, rows: int, new: int, heard: Callable[[], None]) -> None:
        """Generate."""

        def listen(step: Any) -> bool:
            heard()
            return False

        asked = [[f"t{token}" for token in ids] for ids in prompts(rows, self.vocabulary)]
        how: dict[str, Any] = {"max_length": new, "min_length": new, "include_prompt_in_result": False, "sampling_topk": 1}
        self.generator.generate_batch(asked, callback=listen, **how)


class _Names:
    """As much of a tokenizer as the converter asks for."""

    bos_token = unk_token = eos_token = pad_token = "t1"
    bos_token_id = eos_token_id = 1
    add_prefix_space = False

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(self.count)}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return f"t{ids}" if isinstance(ids, int) else [f"t{i}" for i in ids]

    def convert_tokens_to_ids(self, token: str) -> int:
        return int(token[1:])


CONTESTANTS = {"triform": Triform, "transformers": Transformers, "llama.cpp": LlamaCpp, "ctranslate2": CTranslate2}


def timed(contestant: Any, rows: int, new: int) -> dict[str, float]:
    """Seconds to the first token, and for the rest."""
    times = [time.perf_counter()]
    contestant.run(rows, new, lambda: times.append(time.perf_counter()))
    return {"first": times[1] - times[0], "rest": times[-1] - times[1]}


def main() -> None:
    """Answer requests until there are no more."""
    name, path, precision = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    contestant: Any = CONTESTANTS[name](path, precision)
    print(json.dumps({"bytes": getattr(contestant, "bytes", 0)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "read" in request:
            answer = {"rate": contestant.read()}
        elif "score" in request:
            answer = {"nats": contestant.score(request["score"])}
        else:
            answer = timed(contestant, request["rows"], request["new"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
