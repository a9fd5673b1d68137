"""A training pass of a whole model as sizes: inputs, stacks, heads and losses, on the modules of `activations`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from triform import config

from .activations import Modules, Piece, Shape, Store, View
from .backward import gathering_loss_back, lookup_back, loss_back
from .setting import Setting
from .tape import Parameter, Storage, Tape, Tensor, new_each, same_each

LOGITS = "logits"
TURNED = 4096  # rows of a product that is added in another dtype at a time (see nn.products)


def joined_rows(model_width: int, size: int) -> int:
    """Tokens whose gradients by the logits exist at once (see nn.loss)."""
    return max(512, 6 * model_width // size) if size < 4 else 256


def length_of(stack: config.Stack, length: int) -> int:
    """Positions of a stack's input: patches have a number of their own."""
    return stack.input.length if isinstance(stack.input, config.Patches) else length


def keys_of(attention: config.Attention, piece: Piece) -> int:
    """Tokens that those of a piece may look at."""
    return piece.tokens + (piece.past if attention.window is None else min(piece.past, attention.window - 1))


@dataclass
class Scene:
    """What every layer of one stack shares."""

    stack: config.Stack
    name: str
    length: int
    views: dict[config.Attention, View] = field(default_factory=dict)
    across: View = field(default_factory=View)
    memory: Tensor | None = None
    source: int = 0  # tokens of the memory
    store: Store | None = None

    def keys(self, attention: config.Attention) -> int:
        """Tokens that a query may look at, those in the store included."""
        piece = Piece(self.length) if self.store is None else self.store.pieces[0]
        return keys_of(attention, piece)


@dataclass
class Pass:
    """One micro-batch through a model."""

    model: config.Model
    setting: Setting
    tape: Tape
    weights: Mapping[str, Parameter]
    training: bool = True

    def __post_init__(self) -> None:
        setting = self.setting
        again = self.training and setting.recompute != "none"
        narrow = setting.accumulate == 1 and setting.precision == "bf16" and setting.optimizer in ("adamw", "adamw8bit")
        how = (setting.device, setting.attention, self.training, setting.precision == "fp8", again, narrow)
        self.modules = Modules(self.tape, self.weights, *how, 0.0 if setting.adapter is None else setting.adapter.dropout)
        self.routing: list[tuple[Tensor | Storage, ...]] | None = []

    def loss(self) -> Tensor:
        """The loss of a micro-batch; nothing else of the pass is left but what autograd saved."""
        model = self.model
        if isinstance(model, config.DualEncoder):
            return self._ended(self._towers(model))
        hidden, read = self._hidden()
        self.tape.layer, self.tape.ledger.moment = "head", "loss"
        is_language_model = isinstance(model.head, config.LanguageModel)
        results = [self._cross_entropy(hidden, read) if is_language_model else self.head(hidden)]
        if model.sentence_head is not None:
            results.append(self.pooled(hidden, "sentence_head", model.sentence_head))
        return self._ended(results)

    def _towers(self, model: config.DualEncoder) -> list[Tensor]:
        vectors = []
        for spec, name in ((model.text, "text"), (model.image, "image")):
            x = self.stack(spec, name, length_of(spec, self.setting.sequence))
            y = self.modules.linear(self.tape.op(self.setting.batch * spec.width, x.width, (x,)), f"{name}_out")
            vectors.append(self.tape.op(y.count, y.width, (y,), (y,)))
            del x, y
        return vectors

    def _hidden(self) -> tuple[Tensor, int]:
        """What the head of a Transformer reads, and its length."""
        model, setting = self.model, self.setting
        assert isinstance(model, config.Transformer)
        if model.encoder is None:
            assert model.decoder is not None
            return self.stack(model.decoder, "decoder", setting.sequence), setting.sequence
        source = length_of(model.encoder, setting.sequence)
        memory = self.stack(model.encoder, "encoder", source)
        if model.decoder is None:
            return memory, source
        return self.stack(model.decoder, "decoder", setting.target_length, memory, source), setting.target_length

    def _ended(self, results: list[Tensor]) -> Tensor:
        """One number made of all results and of what the experts chose."""
        tape = self.tape
        for logits, *_ in self.routing or ():
            assert isinstance(logits, Tensor)
            share = tape.op(logits.count, 4, (logits,), keeps_result=True)
            results += [tape.op(1, 4, (share,)), tape.op(1, 4, (logits,), (logits,))]
        self.routing = None
        tape.forget_casts()
        return tape.op(1, 4, results)

    # Stacks

    def output(self) -> list[Tensor]:
        """What a whole pass without gradients gives."""
        model = self.model
        if isinstance(model, config.DualEncoder):
            return self._towers(model)
        hidden, _ = self._hidden()
        results = [self.vocabulary(hidden) if isinstance(model.head, config.LanguageModel) else self.head(hidden)]
        if model.sentence_head is not None:
            results.append(self.pooled(hidden, "sentence_head", model.sentence_head))
        return results

    def stack(
        self, spec: config.Stack, name: str, length: int, memory: Tensor | None = None, source: int = 0, store: Store | None = None
    ) -> Tensor:
        tape = self.tape
        tape.layer, tape.ledger.moment = f"{name}.input", f"forward of {name}.input"
        scene = Scene(spec, name, length, memory=memory, source=source, store=store)
        x = self.patches(scene, spec.input) if isinstance(spec.input, config.Patches) else self.tokens(scene, spec.input)
        for attention in dict.fromkeys(block.attention for block in spec.pattern[: spec.depth]):
            scene.views[attention] = self.view(scene, attention)
        if source and self.setting.rows != "full":
            scene.across = View(tape.new(self.setting.batch * source * (length if self.setting.rows == "packed" else 1), 1))
        for index in range(spec.depth):
            tape.layer = f"{name}.layers.{index}"
            tape.ledger.moment = f"forward of {tape.layer}"
            x = self._layer(x, scene, index)
        tape.layer = f"{name}.norm"
        return self.modules.norm(x, f"{name}.norm", spec.norm)

    def _layer(self, x: Tensor, scene: Scene, index: int) -> Tensor:
        return self.tape.recomputed(self.setting.recompute, lambda x: self.block(x, scene, index), x)

    def block(self, x: Tensor, scene: Scene, index: int) -> Tensor:
        """A layer of a stack: attention, cross-attention if any, feed-forward."""
        stack, modules, name = scene.stack, self.modules, f"{scene.name}.layers.{index}"
        spec = stack.block(index)

        def attention(x: Tensor, inner: str) -> Tensor:
            own = spec.attention
            shape = Shape(self.setting.batch, own.heads, scene.length, scene.keys(own), stack.head_width(own))
            return modules.attention(x, inner, own, shape, scene.views[own], None, scene.store)

        def cross(x: Tensor, inner: str) -> Tensor:
            assert spec.cross is not None
            shape = Shape(self.setting.batch, spec.cross.heads, scene.length, scene.source, stack.head_width(spec.cross))
            return modules.attention(x, inner, spec.cross, shape, scene.across, scene.memory, scene.store)

        def feed_forward(x: Tensor, inner: str) -> Tensor:
            if isinstance(spec.feed_forward, config.FeedForward):
                return modules.feed_forward(x, inner, spec.feed_forward)
            y, routing = modules.experts(x, inner, spec.feed_forward)
            if self.routing is not None:
                self.routing.append(routing)
            return y

        x = self._sublayer(x, f"{name}.attention", spec, attention)
        if spec.cross is not None:
            x = self._sublayer(x, f"{name}.cross", spec, cross)
        return self._sublayer(x, f"{name}.feed_forward", spec, feed_forward)

    def _sublayer(self, x: Tensor, name: str, spec: config.Block, body: Callable[[Tensor, str], Tensor]) -> Tensor:
        modules, norm = self.modules, f"{name}.norm"
        narrow = not (name.endswith(".feed_forward") and isinstance(spec.feed_forward, config.Experts))
        y = body(x if spec.placement == "post" else modules.norm(x, norm, spec.norm, narrow), f"{name}.body")
        if spec.placement == "post":
            return modules.norm(modules.add(x, modules.dropout(y, spec.dropout)), norm, spec.norm)
        after = spec.norm if spec.placement == "sandwich" else None
        return modules.add(x, modules.dropout(modules.norm(y, f"{name}.norm_out", after), spec.dropout))

    # Inputs

    def tokens(self, scene: Scene, spec: config.Tokens) -> Tensor:
        tape, modules, width = self.tape, self.modules, scene.stack.width
        count = self.setting.batch * scene.length
        table = self.weights.get(f"{scene.name}.input.token.weight") or self.weights["encoder.input.token.weight"]
        found = tape.op(count * width, table.tensor.width, (table.tensor,), back=lookup_back if modules.fused else new_each)
        x = modules.scaled(found, spec.scale)
        del found
        rows = self._rows(scene) * scene.length
        if isinstance(spec.position, config.Learned):
            position = self.weights[f"{scene.name}.input.position.weight"].tensor
            x = modules.add(x, tape.op(rows * width, position.width, (position,), extra=8 * rows))
        elif spec.position is not None:
            x = modules.add(x, tape.new(rows * width, 4))
        if spec.segments:
            x = modules.add(x, tape.op(width, 4, (self.weights[f"{scene.name}.input.segment.weight"].tensor,)))
        return modules.dropout(modules.norm(x, f"{scene.name}.input.norm", spec.norm), spec.dropout)

    def patches(self, scene: Scene, spec: config.Patches) -> Tensor:
        tape, modules, name, batch = self.tape, self.modules, f"{scene.name}.input", self.setting.batch
        width, count = scene.stack.width, batch * (spec.length - 1)
        pixels = batch * spec.channels * spec.image**2  # the batch's own; a narrower copy is saved
        matrix = tape.cast(self.weights[f"{name}.patch.weight"].tensor, tape.compute)
        bias = [tape.cast(self.weights[f"{name}.patch.bias"].tensor, tape.compute)] if spec.bias else []
        read = [tape.hold(pixels * tape.compute)] if tape.compute < tape.wide else []
        found = tape.op(count * width, tape.compute, (matrix, *bias), (matrix, *read))
        del read
        first, position = self.weights[f"{name}.first"].tensor, self.weights[f"{name}.position"].tensor
        x = tape.op(batch * spec.length * width, tape.wide, (first, tape.cast(found, tape.wide)), back=same_each)
        del found
        x = modules.add(x, position)
        return modules.dropout(modules.norm(x, f"{name}.norm", spec.norm), spec.dropout)

    def _rows(self, scene: Scene) -> int:
        """Rows that have positions of their own."""
        return 1 if self.setting.rows == "full" and scene.store is None else self.setting.batch

    def view(self, scene: Scene, attention: config.Attention) -> View:
        tape, rows, queries, turn = self.tape, self._rows(scene), scene.length, None
        if isinstance(attention.position, config.Rotary):
            size = 4 * rows * queries * scene.stack.head_width(attention)
            turn = (tape.hold(size), tape.hold(size))
        pieces = () if scene.store is None else scene.store.pieces
        if len(pieces) > 1:
            return View(None, turn, parts=tuple((piece, self._seen(scene, attention, piece)) for piece in pieces))
        return self._seen(scene, attention, pieces[0]._replace(rows=rows) if pieces else Piece(queries, 0, rows))._replace(rotation=turn)

    def _seen(self, scene: Scene, attention: config.Attention, piece: Piece) -> View:
        tape, keys, several = self.tape, keys_of(attention, piece), piece.tokens > 1
        biased = isinstance(attention.position, config.Bucketed | config.Alibi)
        windowed = attention.window is not None and keys > attention.window
        goes_on = several and scene.store is not None and (piece.past > 0 or attention.mask == "prefix")
        if self.setting.rows == "full" and not (biased or windowed or goes_on):
            return View(None, None, attention.mask != "bidirectional" and several)
        pairs = piece.rows * piece.tokens * keys
        distance = tape.hold(8 * pairs)
        mask = tape.new(pairs, 1)
        tape.hold(pairs * (3 if attention.window is not None else int(attention.mask != "bidirectional")))  # comparisons
        if biased:
            mask = self._bias(scene, attention, mask)
        del distance
        return View(mask)

    def _bias(self, scene: Scene, attention: config.Attention, seen: Tensor) -> Tensor:
        """Scores to add, of the dtype that attention runs in."""
        tape, count = self.tape, seen.count * attention.heads
        if isinstance(attention.position, config.Bucketed):
            buckets = tape.hold(44 * seen.count)
            del buckets
            table = self.weights[f"{scene.name}.biases.{self._place(scene.stack, attention)}.weight"].tensor
            bias = tape.op(count, tape.wide, (table,), extra=8 * seen.count)
        else:
            bias = tape.new(count, tape.wide)
        bias = tape.cast(bias, tape.compute)
        return tape.op(count, tape.compute, (bias,), (tape.hold(seen.count),))

    @staticmethod
    def _place(stack: config.Stack, attention: config.Attention) -> int:
        """Which of the stack's biases this is; attentions of one position, heads and direction share theirs."""
        kinds = [(a.position, a.heads, a.mask == "bidirectional") for a in (block.attention for block in stack.pattern[: stack.depth])]
        biased = [kind for kind in dict.fromkeys(kinds) if isinstance(kind[0], config.Bucketed | config.Alibi)]
        return biased.index((attention.position, attention.heads, attention.mask == "bidirectional"))

    # Heads

    def head(self, x: Tensor) -> Tensor:
        """What a head other than a language model's gives."""
        model = self.model
        assert isinstance(model, config.Transformer)
        match model.head:
            case config.Classify() | config.Embed() as spec:
                return self.pooled(x, "head", spec)
            case config.ClassifyTokens() | config.AnswerSpan() as spec:
                return self.tape.cast(self.modules.linear(self.modules.dropout(x, spec.dropout), "head.out"), self.tape.wide)
            case _:
                return x

    def pooled(self, x: Tensor, name: str, spec: config.Classify | config.Embed) -> Tensor:
        tape, modules = self.tape, self.modules
        width = self.model.last.width  # type: ignore[union-attr]
        y = tape.op(self.setting.batch * width, x.width, (x,))
        if spec.transform is not None:
            y = modules.activation(modules.linear(y, f"{name}.dense"), spec.transform)
        if isinstance(spec, config.Classify):
            y = modules.dropout(y, spec.dropout)
        return modules.linear(y, f"{name}.out") if f"{name}.out.weight" in self.weights else y

    def features(self, x: Tensor) -> Tensor:
        """What the output matrix is multiplied with."""
        spec, modules = self.model.head, self.modules  # type: ignore[union-attr]
        assert isinstance(spec, config.LanguageModel)
        if spec.transform is not None:
            x = modules.norm(modules.activation(modules.linear(x, "head.dense"), spec.transform), "head.norm", spec.norm)
        return modules.scaled(x, spec.scale)

    def _table(self) -> Parameter:
        names = ("head.weight", "decoder.input.token.weight", "encoder.input.token.weight")
        return next(self.weights[name] for name in names if name in self.weights)

    def vocabulary(self, x: Tensor) -> Tensor:
        """The scores of all tokens of the vocabulary."""
        x, table = self.features(x), self._table()
        return self.tape.product(x.count // table.shape[1] * table.shape[0], self.tape.compute, (x, table.tensor), ())

    def _cross_entropy(self, x: Tensor, length: int) -> Tensor:
        """A language model's loss and its gradients, a chunk of tokens at a time (see nn.loss)."""
        scored = self.setting.scored
        if (scored is not None and scored < length) or self.setting.rows != "full":
            scored = scored or length
            x = self.tape.op(x.count // length * scored, x.width, (x,), extra=8 * self.setting.batch * scored)
        x, table, bias = self.features(x), self._table(), self.weights.get("head.bias")
        tape, (vocabulary, width) = self.tape, table.shape
        compute, wide = tape.compute, tape.wide
        states = x if x.width == compute else tape.new(x.count, compute)
        matrix = table.tensor if table.tensor.width == compute else tape.new(vocabulary * width, compute, "casts")
        by_hidden = tape.new(x.count, compute, LOGITS)
        tokens, joined, by_weight = x.count // width, joined_rows(width, compute), None
        supers = list(range(0, tokens, joined))
        for begin in [*supers[:2], *supers[-1:]] if len(supers) > 3 else supers:  # those between are alike
            kept = tape.new(min(joined, tokens - begin) * vocabulary, compute, LOGITS)
            by_states = tape.new(min(joined, tokens - begin) * width, compute, LOGITS)
            del by_states
            if begin == supers[-1]:
                del matrix
            if table.tensor.node is None:
                del kept
                continue
            if by_weight is None:
                by_weight = tape.new(vocabulary * width, compute, LOGITS)
            elif compute < wide:
                by_weight = by_weight if by_weight.width == wide else tape.new(by_weight.count, wide, LOGITS)
                product = tape.new(min(vocabulary, TURNED) * width, compute, LOGITS)
                tape.hold(product.count * wide if self.modules.device == "cpu" else 0, LOGITS)
                del product
            del kept
        del states
        if by_weight is None:
            return tape.op(1, 4, (x,), (by_hidden,), back=loss_back)
        inputs = (x, table.tensor) if bias is None else (x, table.tensor, bias.tensor)
        back = gathering_loss_back if self.modules.fused else loss_back
        return tape.op(1, 4, inputs, (by_hidden, by_weight), back=back)
