"""From prompts to the context: each prompt becomes one vector, and the vectors are fused.

Vectors are not normalised: what is linear in the numbers of a text stays so up to the networks that are given it, which
is how a task between the train tasks comes to be treated as one. (With a layer norm here, validation scores told a text
fell from 96 to 88.)

An absent prompt is a learned null vector, so one set of parameters serves no prompt, either, and both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmdpd_jax import draws
from llmdpd_jax.models.dense import Dense, DenseGeneral
from llmdpd_jax.models.layers import MLP, AttentionPool, TransformerBlock
from llmdpd_jax.prompts.table import LINEAR_UP_TO
from llmdpd_jax.types import Array, TextPrompt, TrajectoryPrompt

POOLINGS = ("attention", "mean")  # how `TextReader` makes one vector of the words


def excess_of(numbers: Array) -> Array:
    """How far numbers [...] reach beyond the linear range of `prompts.table`, in its units: [..., 1]."""
    return jnp.maximum(jnp.abs(numbers) - LINEAR_UP_TO, 0.0)[..., None]


class TextReader(nn.Module):
    """Reads a text prompt, LLM states and exact numbers of its tokens: TextPrompt [..., L] -> [..., width].

    The LLM tells what is asked for and what each number means, the numeric channel what the numbers are. So the LLM
    states alone decide, through one bidirectional layer, how a number counts, and its value passes by itself:

    - *Slots* take numbers linearly, so that a task between the train tasks is read as exactly as they are. A number
      fills the slots that want it, with a factor between -1 and 1, which is crisp for a sign.
    - *Dials* are for what comes round again, such as headings: a number turns one of them, at one of some learned
      rates, from one of some learned directions towards another (north, east), and where it then points is passed on.
    - What the words say without any number is pooled.

    Given a `key` (in training), the states are blurred by noise and, beside numbers, the pooled words are often left
    out. States are so rich that a reader could know each train sentence; blurred, it has to go by what sentences share,
    and numbers have to be read by slots and dials, not by the tone of the sentence.
    """

    width: int
    use_llm: bool = True
    use_numbers: bool = True
    pooling: str = "attention"  # or "mean": of the LLM's states as they are, the plainest sentence embedding
    slots: int = 8
    dials: int = 0
    choices: int = 16  # of rates, and of directions
    layers: int = 1
    reach: int = 8  # tokens; how near a word stands to a number says whether it is about it
    max_numbers: int = 8  # ordinals of numbers in a text; later ones share the last
    noise: float = 0.3  # of the states, whose power is 1 in each dimension
    words_dropout: float = 0.7

    @nn.compact
    def __call__(self, prompt: TextPrompt, key: Array | None = None) -> Array:
        tokens = jnp.zeros((*prompt.mask.shape, self.width))
        if self.use_numbers:
            is_number = ((prompt.number_index >= 0) & prompt.mask)[..., None]
            ordinals = jnp.clip(prompt.number_index, 0, self.max_numbers - 1)
            tokens = nn.Embed(self.max_numbers, self.width, name="ordinal")(ordinals)
            # Of a number's size only this much is told: far beyond most others it is hardly what the task is about.
            tokens = tokens + Dense(self.width, use_bias=False, name="excess")(excess_of(prompt.numbers))
            tokens = jnp.where(is_number, tokens, 0.0)
        if self.use_llm:
            states = prompt.states
            if key is not None:
                key_noise, key_words = draws.split(key, 2)
                states = states + self.noise * draws.normal(key_noise, states.shape)
            tokens = tokens + Dense(self.width, name="states")(states)
        if self.pooling == "mean":
            read = jnp.mean(tokens, axis=-2, where=prompt.mask[..., None])
        if self.pooling == "attention" or self.use_numbers:
            for i in range(self.layers):
                tokens = TransformerBlock(reach=self.reach, name=f"block_{i}")(tokens, prompt.mask)
            tokens = nn.LayerNorm(name="norm")(tokens)
        if self.pooling == "attention":
            read = AttentionPool(self.width, name="pool")(tokens, prompt.mask)
        if self.use_numbers:
            if self.use_llm and key is not None:
                keep = draws.bernoulli(key_words, 1.0 - self.words_dropout, read.shape[:-1])
                keep = keep | ~jnp.any(is_number, axis=(-2, -1))  # where there are no numbers, words are all there is
                read = jnp.where(keep[..., None], read, 0.0)
            parts = [self.fill_slots(prompt, tokens, is_number)]
            if self.dials:
                parts.append(self.turn_dials(prompt, tokens, is_number))
            read = read + Dense(self.width, name="numbers")(jnp.concatenate(parts, axis=-1))
        return read

    def fill_slots(self, prompt: TextPrompt, tokens: Array, is_number: Array) -> Array:
        """Slots [..., slots]: weighted means of numbers times factors. is_number [..., L, 1]."""
        scores = Dense(self.slots, name="slot_scores")(tokens)
        # Numbers far larger than most are left out at first: taken for quantities they drown what other texts teach,
        # and some seeds never unlearned it.
        penalty = self.param("excess_penalty", nn.initializers.constant(2.0), (self.slots,))
        scores = jnp.where(is_number, scores - penalty * excess_of(prompt.numbers), -jnp.inf)
        # A further choice with score 0 and value 0 leaves a slot empty.
        scores = jnp.concatenate([scores, jnp.zeros_like(scores[..., :1, :])], axis=-2)
        weights = jax.nn.softmax(scores, axis=-2)[..., :-1, :]
        factors = jnp.tanh(Dense(self.slots, name="slot_factors")(tokens))
        return jnp.sum(weights * factors * prompt.numbers[..., None], axis=-2)

    def turn_dials(self, prompt: TextPrompt, tokens: Array, is_number: Array) -> Array:
        """Where dials point [..., 2 dials]; a number turns one dial or, a last choice, none. is_number [..., L, 1]."""
        # At first numbers turn no dial: values that count as they are should be left to the slots.
        none = nn.initializers.constant(jnp.zeros(self.dials + 1).at[-1].set(4.0))
        shares = jax.nn.softmax(Dense(self.dials + 1, bias_init=none, name="dial_scores")(tokens), axis=-1)[..., :-1]
        # A number of several tokens is still one number.
        same = (prompt.number_index[..., :, None] == prompt.number_index[..., None, :]) & prompt.mask[..., None, :]
        shares = jnp.where(is_number, shares / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1), 0.0)

        def choose(name: str, angles: Array) -> Array:
            """A choice among angles [..., choices] as a point on the unit circle, complex [..., L, dials]."""
            scores = DenseGeneral((self.dials, self.choices), name=f"{name}_scores")(tokens)
            return jnp.sum(jax.nn.softmax(scores, axis=-1) * jnp.exp(1j * angles), axis=-1)

        # Unbounded: a turn may be any number of the units in which numbers are given.
        rates = self.param("rates", nn.initializers.normal(2.0), (self.choices,))
        directions = self.param("directions", nn.initializers.normal(2.0), (self.choices,))
        turn = choose("rate", rates * prompt.numbers[..., None, None])
        # Start and end each follow from words of their own ("from east towards south"); which way round the turn goes
        # would follow from both together only, and new sentences were misread for it.
        turned = turn.real * choose("start", directions) + turn.imag * choose("end", directions)
        dials = jnp.sum(shares * turned, axis=-2)
        return jnp.concatenate([dials.real, dials.imag], axis=-1)


class TrajectoryReader(nn.Module):
    """Reads a trajectory prompt: a transformer over its transitions. TrajectoryPrompt [..., T] -> [..., width].

    A token is one transition (s, a, r, s'), so that what a transition says of the task's reward and dynamics is within
    one token and attention only has to combine such evidence.
    """

    width: int
    use_rewards: bool = True
    layers: int = 2

    @nn.compact
    def __call__(self, prompt: TrajectoryPrompt) -> Array:
        parts = [prompt.observations, prompt.actions, prompt.next_observations]
        if self.use_rewards:
            parts.append(prompt.rewards[..., None])
        tokens = Dense(self.width, name="in")(MLP(self.width, 1, name="transition")(jnp.concatenate(parts, axis=-1)))
        for i in range(self.layers):
            tokens = TransformerBlock(name=f"block_{i}")(tokens, prompt.mask)
        tokens = nn.LayerNorm(name="norm")(tokens)
        return AttentionPool(self.width, name="pool")(tokens, prompt.mask)


class PromptEncoder(nn.Module):
    """Both readers and their fusion into the context [..., width].

    With `keep_prompts` the vectors of text and trajectory follow it, [..., 3 * width], for a denoiser that attends to
    each prompt by itself.
    """

    width: int
    text_layers: int = 1
    text_pooling: str = "attention"
    trajectory_layers: int = 2
    use_llm: bool = True
    use_numbers: bool = True
    number_slots: int = 8
    number_dials: int = 0
    use_rewards: bool = True
    keep_prompts: bool = False

    def setup(self):
        self.text_reader = TextReader(
            self.width,
            self.use_llm,
            self.use_numbers,
            self.text_pooling,
            self.number_slots,
            self.number_dials,
            layers=self.text_layers,
        )
        self.trajectory_reader = TrajectoryReader(self.width, self.use_rewards, layers=self.trajectory_layers)
        self.null = self.param("null", nn.initializers.normal(0.1), (2, self.width))
        # No bias: what is added to both prompts' confidences changes no weight.
        self.confidence = Dense(1, use_bias=False, name="confidence")

    def read_text(self, prompt: TextPrompt, key: Array | None = None) -> Array:
        """[..., L] -> [..., width]; with a key as in training."""
        return self.text_reader(prompt, key)

    def read_trajectory(self, prompt: TrajectoryPrompt) -> Array:
        """[..., T] -> [..., width]."""
        return self.trajectory_reader(prompt)

    def fuse(self, text: Array, trajectory: Array, has_text: Array, has_trajectory: Array) -> Array:
        """Fuses prompt vectors [..., width], absent where the flags [...] are False, into the context [..., width],
        or [..., 3 * width] with `keep_prompts`.

        Both prompts speak of the same task, so their vectors share one space and the context is their mean weighted by
        learned confidences: what the policy has learned from one prompt holds for the other.
        """
        vectors = jnp.stack([text, trajectory], axis=-2)
        present = jnp.stack([has_text, has_trajectory], axis=-1)[..., None]
        vectors = jnp.where(present, vectors, self.null)
        weights = jax.nn.softmax(self.confidence(vectors) + jnp.where(present, 0.0, -4.0), axis=-2)
        fused = jnp.sum(weights * vectors, axis=-2)
        if self.keep_prompts:
            return jnp.concatenate([fused, vectors.reshape(*fused.shape[:-1], -1)], axis=-1)
        return fused

    def __call__(self, text: TextPrompt, trajectory: TrajectoryPrompt, has_text: Array, has_trajectory: Array) -> Array:
        """Context of both prompts, as `fuse` gives it."""
        return self.fuse(self.read_text(text), self.read_trajectory(trajectory), has_text, has_trajectory)
