#!/usr/bin/env python3
"""Write a llama model of half a megabyte that can do one thing: count.

Whatever it is asked, it answers " one two three ... forty" and ends. With --ring, " forty" is followed by " one"
again and only the limit on tokens ends the answer. Each word is one token, so a test that reads an answer knows to
the token whether something was lost, repeated, mixed up with another answer, or continued where it broke off.

Why it works
------------
A transformer layer adds its result to the vector that stands for the token. Here the last matrix of both halves of
each layer (attn_output, ffn_down) is zero, so nothing is ever added: attention runs, the cache fills, time is spent,
but the vector that reaches the output matrix is the embedding of the last token and nothing else. What comes next
therefore depends only on the last token.

That embedding is one of 41 states: state k of "word k was said last", and state 0 of every other token, which is
what a prompt ends in. The states are rows of a Walsh matrix: entries of 1 and -1, any two rows orthogonal. The row of
the output matrix for word k + 1 is state k itself, so its logit is the length of the vector, 64, while that of every
other token is exactly 0. A lead of 64 leaves sampling nothing to choose, whatever the temperature in common use. All
entries being 1 or -1 also means that the normalisation before the output changes nothing.

The vocabulary
--------------
SentencePiece style: a byte token for each of the 256 bytes, so that any prompt can be read, and one token for each
word with its leading space. Such a tokenizer builds a token by merging two neighbours whose joint text is a token too,
so every beginning of a word is a token as well (" t", " th", " thr", " thre"): without these, text would never grow
into words. With them an answer that is cut after any word and given back as the beginning of the assistant's turn
ends in that word's token, and the counting goes on from there.

Needs nothing but the standard library. The same arguments give the same file, byte for byte.
"""

import argparse
import random
import struct

WIDTH = 64  # of the vectors; a power of two, as Walsh rows are, and at least the number of states
HEADS = 4
LAYERS = 2
HIDDEN = 128  # width inside the feed-forward half of a layer
CONTEXT = 8192  # tokens the model says it was trained for; llama-server warns above that

ONES = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
WORDS = ONES + TEENS + [tens + one for tens in ("twenty", "thirty") for one in ["", *ONES]] + ["forty"]

SPACE = "\u2581"  # how a SentencePiece vocabulary writes a space
BOS, EOS = 1, 2
FIRST_WORD = 3 + 256  # after <unk>, <s>, </s> and the bytes

# A turn is "<s>role\ncontent</s>\n"; the prompt ends after "<s>assistant\n", so its last token is a line feed.
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def vocabulary():
    """The tokens in order, as pairs of text and kind; the kinds are the format's own numbers."""
    normal, unknown, control, byte = 1, 2, 3, 6
    words = [SPACE + word for word in WORDS]
    beginnings = {word[:length] for word in words for length in range(2, len(word))} - set(words)
    return (
        [("<unk>", unknown), ("<s>", control), ("</s>", control)]
        + [(f"<0x{value:02X}>", byte) for value in range(256)]
        + [(word, normal) for word in words]
        + [(text, normal) for text in sorted(beginnings)]
    )


def state(number):
    """Row `number` of the Walsh matrix: the vector of "word `number` was said last" (0: none was)."""
    return [-1.0 if bin(number & column).count("1") % 2 else 1.0 for column in range(WIDTH)]


def embeddings(tokens):
    """One row for each token: which state it leads to."""
    rows = [state(0) for _ in tokens]
    for number in range(1, len(WORDS) + 1):
        rows[FIRST_WORD + number - 1] = state(number)
    return rows


def outputs(tokens, ring):
    """One row for each token: after which states it is said. A row of zeros is never said."""
    rows = [[0.0] * WIDTH for _ in tokens]
    for number in range(len(WORDS)):
        rows[FIRST_WORD + number] = state(number)
    last = state(len(WORDS))
    if ring:
        rows[FIRST_WORD] = [start + end for start, end in zip(rows[FIRST_WORD], last)]
    else:
        rows[EOS] = last
    return rows


def tensors(tokens, ring, seed):
    """The weights, as pairs of name and value; a value is a list of rows, or one plain list of numbers."""
    chance = random.Random(seed)

    def noise(rows, columns):
        # Evenly spread numbers need no logarithm or cosine, whose last digit differs from one C library to another.
        return [[chance.uniform(-0.1, 0.1) for _ in range(columns)] for _ in range(rows)]

    def zeros(rows, columns):
        return [[0.0] * columns for _ in range(rows)]

    yield "token_embd.weight", embeddings(tokens)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", [1.0] * WIDTH
        yield block + "attn_q.weight", noise(WIDTH, WIDTH)
        yield block + "attn_k.weight", noise(WIDTH, WIDTH)
        yield block + "attn_v.weight", noise(WIDTH, WIDTH)
        yield block + "attn_output.weight", zeros(WIDTH, WIDTH)
        yield block + "ffn_norm.weight", [1.0] * WIDTH
        yield block + "ffn_gate.weight", noise(HIDDEN, WIDTH)
        yield block + "ffn_up.weight", noise(HIDDEN, WIDTH)
        yield block + "ffn_down.weight", zeros(WIDTH, HIDDEN)
    yield "output_norm.weight", [1.0] * WIDTH
    yield "output.weight", outputs(tokens, ring)


def metadata(tokens, ring):
    """What the file says about the model, as pairs of key and encoded value."""
    return [
        ("general.architecture", string_value("llama")),
        ("general.name", string_value("counting in a ring" if ring else "counting to forty")),
        ("general.file_type", u32_value(0)),  # all weights are 32-bit floats
        ("llama.context_length", u32_value(CONTEXT)),
        ("llama.embedding_length", u32_value(WIDTH)),
        ("llama.block_count", u32_value(LAYERS)),
        ("llama.feed_forward_length", u32_value(HIDDEN)),
        ("llama.attention.head_count", u32_value(HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", f32_value(1e-5)),
        ("llama.rope.dimension_count", u32_value(WIDTH // HEADS)),
        ("tokenizer.ggml.model", string_value("llama")),
        ("tokenizer.ggml.tokens", array_value(STRING, [string(text) for text, _ in tokens])),
        # Scores choose between rival merges. Every merge here lengthens the beginning of a word, so there are none.
        ("tokenizer.ggml.scores", array_value(F32, [struct.pack("<f", 0.0) for _ in tokens])),
        ("tokenizer.ggml.token_type", array_value(I32, [struct.pack("<i", kind) for _, kind in tokens])),
        ("tokenizer.ggml.bos_token_id", u32_value(BOS)),
        ("tokenizer.ggml.eos_token_id", u32_value(EOS)),
        ("tokenizer.ggml.unknown_token_id", u32_value(0)),
        ("tokenizer.ggml.add_bos_token", bool_value(True)),
        ("tokenizer.ggml.add_eos_token", bool_value(False)),
        ("tokenizer.ggml.add_space_prefix", bool_value(False)),
        ("tokenizer.chat_template", string_value(CHAT_TEMPLATE)),
    ]


# The format: GGUF version 3, little endian. A value is preceded by the number of its type.
VERSION = 3
ALIGNMENT = 32  # of the weights in the file; what a reader assumes unless told otherwise
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32 = 0  # tensors have type numbers of their own


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def u32_value(number):
    return struct.pack("<II", U32, number)


def f32_value(number):
    return struct.pack("<If", F32, number)


def bool_value(truth):
    return struct.pack("<I?", BOOL, truth)


def string_value(text):
    return struct.pack("<I", STRING) + string(text)


def array_value(kind, encoded):
    return struct.pack("<IIQ", ARRAY, kind, len(encoded)) + b"".join(encoded)


def padded(data):
    return data + bytes(-len(data) % ALIGNMENT)


def write_gguf(path, pairs, weights):
    """Write `pairs` of metadata and `weights` to `path`: a header that lists both, then the numbers themselves."""
    listing, numbers = [], b""
    for name, value in weights:
        rows = value if isinstance(value[0], list) else [value]
        # The shape is written from the innermost dimension outwards; a plain list has only that one.
        shape = [len(value)] if rows[0] is value else [len(rows[0]), len(rows)]
        listing.append(
            string(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", TENSOR_F32, len(numbers))
        )
        numbers += padded(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))
    header = b"GGUF" + struct.pack("<IQQ", VERSION, len(listing), len(pairs))
    header += b"".join(string(key) + value for key, value in pairs) + b"".join(listing)
    with open(path, "wb") as file:
        file.write(padded(header) + numbers)


def main():
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model that counts from one to forty.")
    parser.add_argument("path", help="the file to write")
    parser.add_argument("--ring", action="store_true", help="go on with one after forty, without end")
    parser.add_argument(
        "--seed", type=int, default=1, help="for the weights of attention, which cost time and change nothing"
    )
    arguments = parser.parse_args()
    tokens = vocabulary()
    write_gguf(arguments.path, metadata(tokens, arguments.ring), tensors(tokens, arguments.ring, arguments.seed))


if __name__ == "__main__":
    main()
